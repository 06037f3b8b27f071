# SPDX-License-Identifier: Apache-2.0
"""Where the pictures of images are saved."""

from itertools import chain, count
from pathlib import Path

from anomalib.utils.path import generate_output_filename


class PictureFiles:
    """Gives each image a file of its own, also where images in several folders have the same name.

    It is anomalib's file, ``<root>/<folder of the image>/<name of the image>``, unless that is another image's; then
    more of the folders above tell the two apart.
    """

    def __init__(self) -> None:
        self._images: dict[Path, Path] = {}

    def find(
        self,
        image_path: str | Path,
        root: Path,
        name: str | None = None,
        category: str | None = None,
        suffix: str | None = None,
    ) -> Path:
        """Return the file of an image, the same whenever it is asked for, and make its folder.

        Args:
            image_path: The image.
            root: Folder of all pictures.
            name: Name of the data set, whose folder anomalib takes off the image's path.
            category: The same for its category.
            suffix: Ending of the file, by default the image's.
        """
        image = Path(image_path)
        suffix = image.suffix if suffix is None else suffix
        stock = generate_output_filename(image, root, name, category, mkdir=False).with_suffix(suffix)
        parts = image.with_suffix(suffix).relative_to(image.anchor).parts
        candidates = chain(
            [stock],
            (root.joinpath(*parts[-length:]) for length in range(3, len(parts) + 1)),
            (stock.with_stem(f"{stock.stem}-{number}") for number in count(2)),
        )
        file = next(each for each in candidates if self._images.setdefault(each, image) == image)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

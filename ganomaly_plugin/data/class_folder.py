# SPDX-License-Identifier: Apache-2.0
"""Any classification set that lies in folders, one a class."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track
from torchvision.datasets.folder import IMG_EXTENSIONS

from ganomaly_plugin.data.datamodule import LabelledImages, OneVsRestDataModule
from ganomaly_plugin.image_file import decode, is_hidden, read_size, to_rgb

SPLITS = ("train", "test")
SMALL = 64 * 64
"""Most pixels of images that are kept in memory, 12 kB each."""


class ClassFolder(OneVsRestDataModule):
    """Images at ``<root>/{train,test}/<class>/*``, such as the folders of GANomaly's own code.

    That code expects ``train/0.normal``, ``test/0.normal`` and ``test/1.abnormal``; with ``one_vs_rest="normal"`` and
    ``normal_class="0.normal"`` that is exactly what this trains and tests on. Classes are the names of the folders in
    either split, in alphabetical order. Hidden folders and files, whose names start with a dot, are left out.

    Images of 8 bits and one and the same size of up to 64x64 pixels are decoded once and stay in memory; others are
    read from their files in each epoch.

    Args:
        root: Folder that holds ``train`` and ``test``.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Raises:
        FileNotFoundError: If ``root`` does not hold these folders with images in them.
    """

    def __init__(self, root: Path | str, **kwargs: Any) -> None:
        self.root = Path(root)
        folders = [folder for split in SPLITS for folder in _visible(self.root / split) if folder.is_dir()]
        self.class_names = sorted({folder.name for folder in folders})
        if not self.class_names:
            msg = f"'{self.root}' holds no images: expected are folders '{self.root}/{{train,test}}/<class>'."
            raise FileNotFoundError(msg)
        super().__init__(**kwargs)

    @property
    def name(self) -> str:  # type: ignore[override]  # a property there as well
        """Name of the root folder, under which anomalib files the results."""
        return self.root.resolve().name

    def load(self) -> LabelledImages:
        """Return all images, decoded if they are small, of one size and of 8 bits.

        Raises:
            FileNotFoundError: If a folder holds no image.
        """
        paths, labels, is_train = self.find_files()
        return LabelledImages([str(path) for path in paths], labels, is_train, decode_small(paths))

    def find_files(self) -> tuple[list[Path], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the images' paths, classes, and whether they are for training.

        Raises:
            FileNotFoundError: If a folder holds no image.
        """
        paths: list[Path] = []
        labels: list[int] = []
        for split in SPLITS:
            for label, class_name in enumerate(self.class_names):
                folder = self.root / split / class_name
                found = sorted(path for path in _visible(folder) if path.suffix.lower() in IMG_EXTENSIONS)
                if folder.is_dir() and not found:
                    msg = f"'{folder}' holds no image ({', '.join(IMG_EXTENSIONS)}): add some, or remove the folder."
                    raise FileNotFoundError(msg)
                paths += found
                labels += [label] * len(found)
        return paths, np.array(labels), np.array([path.parent.parent.name == "train" for path in paths])


def _visible(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder, but for what is hidden."""
    return (path for path in folder.glob("*") if not is_hidden(path.name))


def decode_small(paths: list[Path]) -> npt.NDArray[np.uint8] | None:
    """Return the images as ``(N, H, W, 3)`` if they are small, of one size and of 8 bits, otherwise ``None``."""
    height, width = read_size(paths[0])
    if height * width > SMALL:
        return None
    images = np.empty((len(paths), height, width, 3), dtype=np.uint8)
    for target, path in zip(images, track(paths, "Reading images", transient=True), strict=True):
        pixels = decode(path, to_rgb)
        if pixels.dtype != np.uint8 or pixels.shape != target.shape:
            return None
        target[:] = pixels
    return images

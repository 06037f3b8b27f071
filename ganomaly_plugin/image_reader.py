# SPDX-License-Identifier: Apache-2.0
"""Read the image files that cameras and scanners write, with their brightness and the right way up.

anomalib opens every file with ``PIL.Image.open(path).convert("RGB")``. That clips 16-bit grey to white, ignores the
orientation that a camera noted in EXIF, and reports a truncated file without its name. The functions here take the same
arguments and return the same types. ``install`` puts them in the place of anomalib's own; the models, datamodules and
pipelines of this package call it, so that programs without them read as ever.

Images of sets that come in one big file have a name but no file; ``publish`` lets all readers find them.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, Protocol, overload
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import AnomalibDataset, ImageItem, NumpyImageItem, PredictDataset
from anomalib.data.utils import image as anomalib_image
from anomalib.visualization.image import item_visualizer
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_dtype, to_image

from ganomaly_plugin.image_file import decode, to_mask, to_rgb


class ImageSource(Protocol):
    """Something that has images by name."""

    def find_image(self, name: str) -> Image.Image | None:
        """Return the image of a name, or ``None`` where there is none."""


_sources: WeakSet[ImageSource] = WeakSet()

_annotated: ContextVar[str | None] = ContextVar("annotated", default=None)
"""File of the image whose mask anomalib's data set reads."""


@overload
def read_image(path: str | Path, as_tensor: Literal[True]) -> torch.Tensor: ...
@overload
def read_image(path: str | Path, as_tensor: Literal[False] = False) -> npt.NDArray[np.float64]: ...
def read_image(path: str | Path, as_tensor: bool = False) -> torch.Tensor | npt.NDArray[np.float64]:
    """Read an image file as RGB.

    * 8 bits a channel: exactly what anomalib's reader returns. Palettes, CMYK and black-and-white become RGB.
    * Alpha is dropped and the stored colours count, since any background would be an invention.
    * 16-bit grey: 65535 is white, in full precision; 4095 in TIFF files that say that they have 12 bits. (Pillow itself
      reads colour of 16 bits at 8.)
    * Inverted grey (TIFF's MinIsWhite) is turned around.
    * Floating-point grey: 1.0 is white; values outside [0, 1] are refused, as are 32-bit integers, which have no white.
    * EXIF orientation is applied.
    * Of several frames or pages, the first.

    Args:
        path: The image file.
        as_tensor: Whether to return a tensor.

    Returns:
        Values in [0, 1]: a float32 image tensor ``(3, H, W)``, or a float64 array ``(H, W, 3)``.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file is empty, truncated, corrupt, not an image, or its values have no known white.
    """
    pixels = _decode(path, to_rgb)
    if as_tensor:
        return to_dtype(to_image(pixels), torch.float32, scale=True)
    return pixels / 255.0 if pixels.dtype == np.uint8 else pixels


def read_mask(
    path: str | Path, as_tensor: bool = False, annotated: str | Path | None = None
) -> torch.Tensor | npt.NDArray[np.uint8]:
    """Read a ground-truth mask, the right way up as ``read_image`` does.

    Args:
        path: The image file; every value but black marks an anomaly.
        as_tensor: Whether to return a tensor.
        annotated: File of the image that the mask belongs to, known anyway where one of anomalib's data sets reads. A
            mask without an orientation of its own that has the size in which the image is stored is turned with it.

    Returns:
        A uint8 mask tensor ``(H, W)`` of zeros and ones, or the grey levels as a uint8 array ``(H, W)``.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file is empty, truncated, corrupt or not an image.
    """
    pixels = decode(path, to_mask, annotated or _annotated.get())
    return tv_tensors.Mask(torch.from_numpy(pixels > 0), dtype=torch.uint8) if as_tensor else pixels


def publish(source: ImageSource) -> None:
    """Let ``read_image`` and anomalib's pictures find images that have a name but no file, while their source lives.

    A file of the same name goes first.
    """
    _sources.add(source)
    install()


def install() -> None:
    """Make anomalib read images and masks with this module, wherever it holds or will import its own functions.

    Its pictures, too, show what was read so, and so do the processes of its data loaders. Calling it again changes
    nothing.
    """
    for module, ours in (
        (anomalib_image, read_image),
        (anomalib_image, read_mask),
        (item_visualizer, _visualize_what_is_read),
    ):
        name = ours.__name__
        theirs = getattr(module, name)
        for module_name, holder in list(sys.modules.items()):
            if module_name.startswith("anomalib.") and vars(holder).get(name) is theirs:
                setattr(holder, name, ours)
    AnomalibDataset.__getitem__ = _get_item  # type: ignore[method-assign]
    for dataset in (AnomalibDataset, PredictDataset):
        dataset.__reduce_ex__ = _reduce  # type: ignore[method-assign]


_visualize: Callable[..., Image.Image | None] = item_visualizer.visualize_image_item
_get_stock_item = AnomalibDataset.__getitem__


@wraps(_visualize)
def _visualize_what_is_read(item: ImageItem | NumpyImageItem, *args: Any, **kwargs: Any) -> Image.Image | None:
    if isinstance(item, ImageItem) and item.image_path:
        item = replace(item, image=read_image(item.image_path, as_tensor=True), image_path=None)
    return _visualize(item, *args, **kwargs)


@wraps(_get_stock_item)
def _get_item(dataset: AnomalibDataset, index: int) -> Any:
    """Return an item, while ``read_mask`` knows which image the mask belongs to."""
    token = _annotated.set(dataset.samples.iloc[index].image_path)
    try:
        return _get_stock_item(dataset, index)
    finally:
        _annotated.reset(token)


def _reduce(dataset: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickle a data set for a process that is not forked, where unpickling it installs this module first."""
    reduced: Any = object.__reduce_ex__(dataset, protocol)
    build, arguments, *state = reduced
    return (_build_installed, (build, arguments), *state)


def _build_installed(build: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    install()
    return build(*arguments)


def _decode(path: str | Path, convert: Callable[[Image.Image], npt.NDArray]) -> npt.NDArray:
    """Decode a file, or a published image where there is none."""
    if not Path(path).exists():
        for source in list(_sources):
            if (image := source.find_image(str(path))) is not None:
                return convert(image)
    return decode(path, convert)

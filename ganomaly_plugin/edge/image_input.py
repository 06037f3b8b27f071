# SPDX-License-Identifier: Apache-2.0
"""Images of any kind and size as a model takes them, in little memory."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from ganomaly_plugin.image_file import UnreadableImageError, open_image, orientation, to_rgb

Content = bytes | bytearray | memoryview
"""The content of a file."""
Source = str | os.PathLike[str] | Content | BinaryIO | Image.Image | npt.NDArray[Any]
"""A file, its content as bytes or as a binary file object, a Pillow image, or an array as :func:`to_input` takes it."""

MAX_PIXELS = 50_000_000
"""Pixels of an image above which it is refused unless told otherwise: decoding takes up to 4 bytes for each."""

_STRIPE = 1 << 20
"""Pixels that are converted at a time, in whole rows: the width above which an image file is refused."""

Size = tuple[int, int]
"""Height and width in pixels."""
Rows = Callable[[int, int], npt.NDArray[Any]]
"""Gives the rows of an image from one number up to another, ``(rows, W, C)``."""
Allocate = Callable[[Size], npt.NDArray[np.float32]]
"""Gives memory ``(1, 3, H, W)`` for an image of a size."""


def is_one(images: Source | Iterable[Source]) -> TypeGuard[Source]:
    """Say whether this is one image, not several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | Content | Image.Image) or hasattr(images, "read")


class ImageTooLargeError(UnreadableImageError):
    """The image has more pixels than allowed. The message says how to allow them."""


def keep_size(size: Size) -> Size:
    """Return an image's own size."""
    return size


def limit_sides(side: int) -> Callable[[Size], Size]:
    """Return what limits both sides of an image to a number of pixels, each on its own."""
    return lambda size: (min(size[0], side), min(size[1], side))


def _new_input(size: Size) -> npt.NDArray[np.float32]:
    return np.empty((1, 3, *size), dtype=np.float32)


def to_input(
    image: Source,
    choose_size: Callable[[Size], Size] = keep_size,
    max_pixels: int = MAX_PIXELS,
    allocate: Allocate = _new_input,
) -> npt.NDArray[np.float32]:
    """Return an image as the model takes it, ``(1, 3, H, W)`` in [0, 1].

    Args:
        image: A path, the content of a file as bytes or binary file object, a Pillow image, or an array ``(H, W)``,
            ``(H, W, 1)`` or ``(H, W, 3)`` in RGB: uint8, uint16 with white at 65535, or floats in [0, 1].
        choose_size: Says to which size an image is to be resized (bilinear, antialiased).
        max_pixels: Pixels above which a file or Pillow image is refused.
        allocate: Gives the memory for the result, by its size.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file holds no image, or one that is too large.
        ValueError: If the array is no image.
    """
    if isinstance(image, np.ma.MaskedArray):
        msg = "A masked array does not say what its masked pixels are: give an array with values for them (filled)."
        raise ValueError(msg)
    if isinstance(image, np.ndarray):
        pixels = image if image.ndim == 3 else image[..., np.newaxis]
        if image.ndim not in {2, 3} or pixels.shape[2] not in {1, 3} or 0 in pixels.shape:
            msg = f"An array of shape {image.shape} is no image: give (H, W), (H, W, 1) or (H, W, 3)."
            raise ValueError(msg)
        size: Size = pixels.shape[:2]
        return _fill(lambda first, last: pixels[first:last], size, choose_size(size), allocate)

    def convert(pixels: Image.Image) -> npt.NDArray[np.float32]:
        size = (pixels.height, pixels.width)
        if pixels.width > _STRIPE:
            msg = f"The image is {pixels.width} pixels wide, more than the {_STRIPE} that are read: cut it into parts."
            raise ImageTooLargeError(msg)
        return _fill(lambda first, last: _rows(pixels, first, last), size, choose_size(size), allocate)

    if isinstance(image, Image.Image):
        _check_size(image, "The image", max_pixels)
        with _without_pillows_limit():
            return convert(_turn_upright(image))
    if isinstance(image, os.PathLike):
        image = Path(os.fsdecode(image))
    name = f"'{image}'" if isinstance(image, str | Path) else "The image"
    file = BytesIO(image) if isinstance(image, Content) else image
    with _without_pillows_limit(), open_image(file) as opened:
        height, width = choose_size((opened.height, opened.width))
        if height < opened.height and width < opened.width:
            opened.draft(None, (width, height))  # JPEG files can be decoded at a half, a quarter or an eighth.
        _check_size(opened, name, max_pixels)
        ImageOps.exif_transpose(opened, in_place=True)
        return convert(opened)


_limits: list[int | None] = []
_limits_lock = threading.Lock()


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Lift Pillow's own limit while images are read here, in one or several threads: ``max_pixels`` takes its place."""
    with _limits_lock:
        _limits.append(Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _limits_lock:
            earlier = _limits.pop()  # Those on top of the first were put there while the limit was lifted.
            if not _limits:
                Image.MAX_IMAGE_PIXELS = earlier


def _turn_upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF data says it is to be seen, as is done with files; the caller's stays as it is."""
    if isinstance(image, TiffImageFile):
        # Pillow turns TIFF itself, and would garble a file that it maps into memory by its name.
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name
    if orientation(image) in {0, 1}:
        return image
    turned = ImageOps.exif_transpose(image)
    _keep_white(turned, image)
    return turned


def _keep_white(image: Image.Image, original: Image.Image) -> None:
    """Give a copy what says which value is white: the format, and the tags of TIFF files."""
    image.format = original.format
    if hasattr(original, "tag_v2"):
        image.tag_v2 = original.tag_v2  # type: ignore[attr-defined]


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        msg = (
            f"{name} has {image.width} x {image.height} pixels, more than the {max_pixels} that are allowed: store it "
            "smaller, or raise max_pixels (--max-pixels)."
        )
        raise ImageTooLargeError(msg)


def _rows(image: Image.Image, first: int, last: int) -> npt.NDArray[Any]:
    if (first, last) == (0, image.height):
        return to_rgb(image)
    stripe = image.crop((0, first, image.width, last))
    _keep_white(stripe, image)
    return to_rgb(stripe)


def _fill(rows: Rows, size: Size, new_size: Size, allocate: Allocate) -> npt.NDArray[np.float32]:
    """Scale and resize an image one stripe at a time, so that it is never whole in floating point.

    A stripe of the result takes the rows that it lies over and those around it that the filter reaches.
    """
    result = allocate(new_size)
    (height, width), (new_height, new_width) = size, new_size
    ratio = height / new_height
    reach = math.ceil(max(ratio, 1)) + 1 if size != new_size else 0
    step = max(1, int(_STRIPE / width / ratio))
    for new_first in range(0, new_height, step):
        new_last = min(new_first + step, new_height)
        top, bottom = new_first * ratio, min(new_last * ratio, height)
        first, last = max(0, math.floor(top) - reach), min(height, math.ceil(bottom) + reach)
        pixels = _scale(rows(first, last))
        if size == new_size:
            result[0, :, new_first:new_last] = pixels.transpose(2, 0, 1)
            continue
        for channel in range(pixels.shape[2]):
            target = channel if pixels.shape[2] == 3 else slice(None)
            plane = Image.fromarray(np.ascontiguousarray(pixels[..., channel]))
            shape, box = (new_width, new_last - new_first), (0, top - first, width, bottom - first)
            result[0, target, new_first:new_last] = np.asarray(plane.resize(shape, Image.Resampling.BILINEAR, box))
    return result


def _scale(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return pixels in [0, 1].

    Raises:
        ValueError: If it is not known which value is white, or values lie outside [0, 1].
    """
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:  # In either order of bytes.
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= 0 and pixels.max() <= 1):
        msg = (
            f"An array of {pixels.dtype} must hold unsigned integers of 8 or 16 bits, or floats in [0, 1]: rescale it."
        )
        raise ValueError(msg)
    return pixels.astype(np.float32, copy=False)

# SPDX-License-Identifier: Apache-2.0
"""Decode image files with only Pillow and NumPy, for training and for devices without PyTorch."""

import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

_WHITE = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
"""Value of white in Pillow's modes of one deep channel."""

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 256, 257, 258, 262
"""TIFF tags. The last says whether the smallest value is white (0) or black (1)."""


class UnreadableImageError(OSError):
    """The file is there but holds no image that can be read without guessing. The message names it."""


def is_hidden(name: str) -> bool:
    """Whether programs keep a file or folder of this name for themselves (``._x.png``, ``.ipynb_checkpoints``)."""
    return name.startswith(".")


def decode(
    path: str | Path, convert: Callable[[Image.Image], npt.NDArray], annotated: str | Path | None = None
) -> npt.NDArray:
    """Open a file, turn the image the right way up, and return what ``convert`` makes of it.

    Args:
        path: The file.
        convert: Makes an array of the image.
        annotated: File of the image that a mask belongs to. A mask without an orientation of its own that has the size
            in which the image is stored is turned as the image is.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file is empty, truncated, corrupt, not an image, or ``convert`` refuses it.
    """
    with open_image(path) as image:
        if annotated is not None:
            _orient_like(image, annotated)
        ImageOps.exif_transpose(image, in_place=True)
        return convert(image)


def _orient_like(mask: Image.Image, path: str | Path) -> None:
    with open_image(path) as image:
        if orientation(mask) == 1 and stored_size(mask) == stored_size(image):
            mask.getexif()[ExifTags.Base.Orientation] = orientation(image)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of the image as ``decode`` gives it, from the file's header.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file is empty or not an image.
    """
    with open_image(path) as image:
        height, width = stored_size(image)
        return (width, height) if orientation(image) in {5, 6, 7, 8} else (height, width)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width before the image is turned the right way up."""
    return _tag(image, _HEIGHT, image.height), _tag(image, _WIDTH, image.width)  # Pillow turns TIFF itself.


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, by which an opened file is to be turned; 1 is upright."""
    value: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value


def to_rgb(image: Image.Image) -> npt.NDArray:
    """Return uint8 ``(H, W, 3)``, or float64 ``(H, W, 3)`` in [0, 1] for an image of one deep channel.

    Raises:
        ValueError: If the values have no known white.
    """
    if image.mode not in _WHITE:
        if "transparency" in image.info:  # Pillow would warn that the conversion drops it.
            image = image.copy()
            del image.info["transparency"]
        return np.array(image.convert("RGB"))
    if image.mode == "I" and image.format not in {"PNG", "PPM"}:  # For those two, Pillow keeps 16 bits in mode I.
        msg = "signed or 32-bit integers do not say which value is white: store the image with 8 or 16 bits"
        raise ValueError(msg)
    bits = _tag(image, _BITS, (16,))[0]
    grey = np.array(image, dtype=np.float64) / (2**bits - 1 if bits < 16 else _WHITE[image.mode])
    if not (grey.min() >= 0 and grey.max() <= 1):  # Negated, because NaN fails every comparison.
        msg = f"its values span {grey.min():g} to {grey.max():g}, but must lie in [0, 1]: rescale them"
        raise ValueError(msg)
    return np.repeat((1 - grey if _is_inverted(image) else grey)[..., np.newaxis], 3, axis=2)


def to_mask(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return grey levels ``(H, W)``; of an image of one deep channel, 255 for all that is not black."""
    if image.mode not in _WHITE:
        return np.array(image.convert("L"))
    black = _WHITE[image.mode] if _is_inverted(image) else 0
    return np.where(np.array(image) == black, 0, 255).astype(np.uint8)


def _is_inverted(image: Image.Image) -> bool:
    """Whether white is the smallest value. Pillow turns images of up to 8 bits around itself, deeper ones not."""
    return _tag(image, _PHOTOMETRIC, 1) == 0


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    """Return a tag of a TIFF file, or the default for images of other kinds."""
    return getattr(image, "tag_v2", {}).get(number, default)


@contextmanager
def open_image(path: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image; whatever fails while it is open is reported with the file's name."""
    try:
        # From a path, Pillow would map the file into memory, where it garbles TIFF that is to be turned.
        with (
            _open_file(Path(path)) if isinstance(path, str | Path) else nullcontext(path) as file,
            _open(file) as image,
        ):
            yield image
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        msg = f"There is no image file at '{path}': correct the path, or restore the file."
        raise FileNotFoundError(msg) from error
    except Exception as error:  # Pillow's decoders raise errors of any type for a broken file.
        reason = f"{type(error).__name__}: {error}"
        name = f"the image '{path}'"
        if not isinstance(path, str | Path):
            name, reason = "an image from its bytes", reason.replace(f" {path!r}", "")
        msg = f"Cannot read {name} ({reason}). Replace the file, or take it out of the data set."
        raise UnreadableImageError(msg) from error


def _open_file(path: Path) -> BinaryIO:
    """Open a file, but no pipe, which would be waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        msg = "it is a folder, a pipe or a device"
        raise ValueError(msg)
    return path.open("rb")


def _open(file: BinaryIO) -> Image.Image:
    """Open an image, among them those that Pillow knows only in the other byte order: inverted 16-bit TIFF."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        data = bytearray(file.read())
        place = _place_of_photometric(data)
        if place is None:
            raise
        data[place : place + 2] = b"\0\1"
        image = Image.open(BytesIO(data))
        image.tag_v2[_PHOTOMETRIC] = 0  # type: ignore[attr-defined]  # Only TIFF gets here.
        return image


def _place_of_photometric(data: bytes | bytearray) -> int | None:
    """Return where the first page of a big-endian TIFF says that the smallest value is white, if it does."""
    if data[:4] != b"MM\0*":
        return None
    (page,) = struct.unpack_from(">I", data, 4)
    (entries,) = struct.unpack_from(">H", data, page)
    for entry in range(page + 2, page + 2 + 12 * entries, 12):
        if struct.unpack_from(">H6xH", data, entry) == (_PHOTOMETRIC, 0):  # Number, type, count and value.
            return entry + 8
    return None

# SPDX-License-Identifier: Apache-2.0
"""Decode image files with only Pillow and NumPy, for training and for devices without PyTorch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

_WHITE = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
"""Value of white in Pillow's modes of one deep channel."""


class UnreadableImageError(OSError):
    """The file is there but holds no image that can be read without guessing. The message names it."""


def decode(path: str | Path, convert: Callable[[Image.Image], npt.NDArray]) -> npt.NDArray:
    """Open a file, turn the image the right way up, and return what ``convert`` makes of it.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file is empty, truncated, corrupt, not an image, or ``convert`` refuses it.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return convert(image)
    except FileNotFoundError as error:
        msg = f"There is no image file at '{path}': correct the path, or restore the file."
        raise FileNotFoundError(msg) from error
    except Exception as error:  # Pillow's decoders raise errors of any type for a broken file.
        reason = f"{type(error).__name__}: {error}"
        msg = f"Cannot read the image '{path}' ({reason}). Replace the file, or take it out of the data set."
        raise UnreadableImageError(msg) from error


def to_rgb(image: Image.Image) -> npt.NDArray:
    """Return uint8 ``(H, W, 3)``, or float64 ``(H, W, 3)`` in [0, 1] for an image of one deep channel.

    Raises:
        ValueError: If the values have no known white.
    """
    white = _WHITE.get(image.mode)
    if white is None:
        image.info.pop("transparency", None)  # Pillow would warn that the conversion drops it.
        return np.array(image.convert("RGB"))
    if image.mode == "I" and image.format not in {"PNG", "PPM"}:  # For those two, Pillow keeps 16 bits in mode I.
        msg = "32-bit integers do not say which value is white: store the image with 8 or 16 bits"
        raise ValueError(msg)
    grey = np.array(image, dtype=np.float64) / white
    if not (grey.min() >= 0 and grey.max() <= 1):  # Negated, because NaN fails every comparison.
        msg = f"its values span {grey.min():g} to {grey.max():g}, but must lie in [0, 1]: rescale them"
        raise ValueError(msg)
    return np.repeat(grey[..., np.newaxis], 3, axis=2)

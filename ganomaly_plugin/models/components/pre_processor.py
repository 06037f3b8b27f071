# SPDX-License-Identifier: Apache-2.0
"""A pre-processor whose exported graph transforms as the training did."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from anomalib.data.transforms import ExportableCenterCrop
from anomalib.pre_processing import PreProcessor
from PIL.Image import Resampling
from torchvision.transforms.v2 import CenterCrop, Compose, Grayscale, InterpolationMode, Normalize, Resize, Transform

WHITE_LEVEL = 65535
"""Value of white in image files of 16 bits that use all of them."""


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor with the training's transforms, in their order and antialiased, in exported models too.

    anomalib switches antialiasing off in exports, so that a deployed model sees other pixels than the trained one. Here
    the exported graph holds the same bilinear, antialiased interpolation as two matrix products, for any size of the
    image. So does it hold crops.

    anomalib's datamodules resize images when they load them, before all other transforms. Where a transform that cares
    comes before the first ``Resize``, they are kept from it; images in a batch must then have one size.

    Args:
        transform: Transform of images ``(B, C, H, W)`` in [0, 1], or ``None``.

    Raises:
        ValueError: If an exported graph cannot repeat the transform; the message says what to write.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(_keep_order(transform))
        _plan(self.transform)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self.transform = _keep_order(self.transform)

    @property
    def starts_with_resize(self) -> bool:
        """Whether the first transform resizes the whole image to one size, bilinear and antialiased."""
        first = next(_flatten(self.transform), None)
        return (
            isinstance(first, Resize)
            and first.size is not None
            and len(first.size) == 2
            and bool(first.antialias)
            and _interpolation(first) == InterpolationMode.BILINEAR
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Transform raw images ``(B, C, H, W)`` in [0, 1] outside anomalib's engine.

        Raises:
            ValueError: If an exported graph cannot repeat the transform; the message says what to write.
        """
        for step in _plan(self.transform):
            batch = step(batch)
        return batch


def _flatten(transform: Transform | None) -> Iterator[Transform]:
    """Yield the transforms of a chain one by one."""
    if isinstance(transform, Compose):
        for part in transform.transforms:
            yield from _flatten(part)
    elif transform is not None:
        yield transform


def _keep_order(transform: Transform | None) -> Transform | None:
    """Hide a ``Resize`` that must not come first from anomalib's datamodules, which look for it in the outer chain."""
    chain = list(_flatten(transform))
    geometric = [part for part in chain if not isinstance(part, Normalize | Grayscale)]
    resized_later = any(isinstance(part, Resize) for part in geometric[1:]) and not isinstance(geometric[0], Resize)
    return Compose([Compose(chain)]) if resized_later else transform


def _plan(transform: Transform | None) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Return the steps of a chain in their order, as an exported graph can take them for images of any size.

    Raises:
        ValueError: If there is none for a transform.
    """
    steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
    size: tuple[int, int] | None = None  # Of the images at this place of the chain, unless it depends on the image.
    for part in _flatten(transform):
        if isinstance(part, Resize):
            size = _target_size(part, size)
            steps.append(_resize_step(part, size))
        elif isinstance(part, CenterCrop | ExportableCenterCrop):
            size = (part.size[0], part.size[1])
            steps.append(partial(crop_centre, height=size[0], width=size[1]))
        else:
            size = size if isinstance(part, Normalize | Grayscale) else None
            steps.append(part)
    return steps


def _target_size(resize: Resize, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width after a ``Resize`` of images of some size."""
    if resize.size is not None and len(resize.size) == 2:
        return (resize.size[0], resize.size[1])
    if size is None:
        given = resize.size[0] if resize.size else f"None, max_size={resize.max_size}"
        msg = (
            f"Resize({given}) makes images of different sizes from images of different shapes, but a model takes one "
            "size: give height and width, such as Resize((64, 64))."
        )
        raise ValueError(msg)
    made = resize(torch.zeros(1, 1, *size)).shape
    return (made[2], made[3])


def _resize_step(resize: Resize, size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    mode = _interpolation(resize)
    if resize.antialias and mode == InterpolationMode.BILINEAR:
        return partial(resize_antialiased, height=size[0], width=size[1])
    if resize.antialias and mode in {InterpolationMode.BICUBIC, InterpolationMode.LANCZOS}:
        msg = f"Resize with {mode.value} interpolation and antialiasing cannot be exported: use bilinear interpolation."
        raise ValueError(msg)
    return Resize(size, mode, antialias=False)


def _interpolation(resize: Resize) -> InterpolationMode:
    given = resize.interpolation  # torchvision takes its own modes, their names, and Pillow's numbers.
    return InterpolationMode(Resampling(given).name.lower() if isinstance(given, int) else given)


def resize_antialiased(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize images as ``torch.nn.functional.interpolate`` does with ``mode="bilinear", antialias=True``.

    Args:
        images: Shape ``(B, C, H, W)``.
        height: New height.
        width: New width.
    """
    return _along_both_sides(_interpolation_weights, images, height, width)


def crop_centre(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut out the centre of images, and pad with zeros where they are smaller, as torchvision's ``CenterCrop`` does.

    Args:
        images: Shape ``(B, C, H, W)``.
        height: New height.
        width: New width.
    """
    return _along_both_sides(_crop_weights, images, height, width)


def _along_both_sides(
    weights: Callable[[torch.Tensor, int], torch.Tensor], images: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Multiply columns and rows of images by matrices, which are made from a line of pixels and its new length."""
    rows = weights(images[0, 0, :, 0], height)
    columns = weights(images[0, 0, 0], width)
    return rows @ images @ columns.T


def _crop_weights(line: torch.Tensor, length: int) -> torch.Tensor:
    """Return the matrix ``(length, len(line))`` of zeros and ones that cuts out, or pads, the centre of a line."""
    # Tensors all the way, as below.
    ones = torch.ones_like(line, dtype=torch.int64)
    excess = ones.sum() - length
    half = excess.div(2, rounding_mode="floor")
    # Of an odd number of pixels to cut, the half is rounded to even; of one to add, the smaller part comes first.
    first = half + torch.where(excess > 0, excess * half % 2, excess % 2)
    return (torch.arange(length, device=line.device).unsqueeze(1) + first == ones.cumsum(0) - 1).to(line.dtype)


def _interpolation_weights(line: torch.Tensor, length: int) -> torch.Tensor:
    """Return the matrix ``(length, len(line))`` that resizes a line of pixels with a triangular filter.

    Positions are whole numbers, in half of an old pixel's ``length``-th part, because processors with bfloat16
    arithmetic run exported graphs in it, and it has no 257.
    """
    # Tensors all the way, so that an exported graph computes the weights from the image that it is given.
    ones = torch.ones_like(line, dtype=torch.int64)
    count = ones.sum()
    positions = (2 * ones.cumsum(0) - 1) * length
    centres = (2 * torch.arange(length, device=line.device) + 1) * count
    weights = (2 * count.clamp(min=length) - (positions - centres.unsqueeze(1)).abs()).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(line.dtype)

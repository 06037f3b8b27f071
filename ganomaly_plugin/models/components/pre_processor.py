# SPDX-License-Identifier: Apache-2.0
"""A pre-processor whose exported graph resizes as the training did."""

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Resize


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor with antialiased resizing in exported models too.

    anomalib switches antialiasing off in exports, so that a deployed model sees other pixels than the trained one. Here
    the exported graph holds the same bilinear, antialiased interpolation as two matrix products, for any size of the
    image. All arguments are those of anomalib's ``PreProcessor``.
    """

    @property
    def starts_with_resize(self) -> bool:
        """Whether the first transform resizes the whole image to the model's size."""
        first = self.transform.transforms[0] if isinstance(self.transform, Compose) else self.transform
        return isinstance(first, Resize) and len(first.size) == 2

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Transform raw images ``(B, C, H, W)`` in [0, 1] outside anomalib's engine."""
        for resize in extract_transforms_by_type(self.transform, Resize):
            batch = resize_antialiased(batch, *resize.size)
        return super().forward(batch)


def resize_antialiased(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize images as ``torch.nn.functional.interpolate`` does with ``mode="bilinear", antialias=True``.

    Args:
        images: Shape ``(B, C, H, W)``.
        height: New height.
        width: New width.
    """
    rows = _interpolation_weights(images[0, 0, :, 0], height)
    columns = _interpolation_weights(images[0, 0, 0], width)
    return rows @ images @ columns.T


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

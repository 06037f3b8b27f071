# SPDX-License-Identifier: Apache-2.0
"""A pre-processor whose exported graph resizes as the training did."""

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Resize


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor with antialiased resizing in exported models too.

    anomalib switches antialiasing off in exports, so that a deployed model sees other pixels than the trained one. Here
    the exported graph holds the same bilinear, antialiased interpolation as two matrix products, for any size of the
    image. All arguments are those of anomalib's ``PreProcessor``.
    """

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
    """Return the matrix ``(length, len(line))`` that resizes a line of pixels with a triangular filter."""
    # Tensors all the way, so that an exported graph computes the weights from the image that it is given.
    ones = torch.ones_like(line)
    positions = ones.cumsum(0) - 0.5
    scale = ones.sum() / length
    centres = (torch.arange(length, device=line.device) + 0.5) * scale
    weights = (1 - (positions - centres.unsqueeze(1)).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)

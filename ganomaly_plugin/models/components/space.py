# SPDX-License-Identifier: Apache-2.0
"""Spaces: what a detector reconstructs, and what an error there says about the image.

Networks reconstruct tensors and do not depend on images. A space turns images into such tensors, and errors in them
into anomaly maps.
"""

from abc import ABC, abstractmethod

import torch
from anomalib.models.components import GaussianBlur2d
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow and torchvision have them."""
MINIMUM_IMAGE_SIZE = 28
"""Shorter side of an image in pixels, below which two halvings leave no feature map worth encoding."""


class Space(nn.Module, ABC):
    """Base of the spaces. A frozen network may be part of one: it is neither trained nor averaged.

    Args:
        image_size: Height and width of the images in pixels.
        channels: Channels of the target.
        size: Height and width of the target.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Attributes:
        bound: Layer that brings a network's output into the range of the space.

    Raises:
        ValueError: If the Gaussian does not fit into the image; the message says which do.
    """

    bound: type[nn.Module] = nn.Identity

    def __init__(self, image_size: tuple[int, int], channels: int, size: tuple[int, int], map_sigma: float) -> None:
        super().__init__()
        # The blur's kernel reaches 4 standard deviations and is reflected at the border.
        largest_sigma = (min(image_size) - 1) / 4 - 0.5
        if not 0 < map_sigma <= largest_sigma:
            msg = f"map_sigma is {map_sigma} pixels; for images of {image_size} choose one in (0, {largest_sigma}]."
            raise ValueError(msg)
        self.image_size = image_size
        self.channels = channels
        self.size = size
        self.smooth = GaussianBlur2d(sigma=map_sigma)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn pre-processed images ``(B, 3, H, W)`` into the target ``(B, C, h, w)``, in channels-last layout.

        Raises:
            ValueError: If the images have another size than the space.
        """
        if images.shape[-2:] != self.image_size:
            msg = (
                f"The images are {tuple(images.shape[-2:])} pixels, but the model is built for {self.image_size}: set "
                "image_size to the images' size, or let a pre-processor resize them."
            )
            raise ValueError(msg)
        return self.target(images).contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def target(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images of the right size into the target, as in :meth:`forward`."""

    @abstractmethod
    def error(self, target: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the absolute error of each element of a target, in a unit that the space chooses, ``(B, C, h, w)``."""

    @abstractmethod
    def show(self, reconstruction: torch.Tensor) -> torch.Tensor | None:
        """Return pictures ``(B, 3, H, W)`` in [0, 1] of a reconstruction, or ``None`` where there is nothing to see."""

    def to_map(self, error: torch.Tensor) -> torch.Tensor:
        """Turn errors ``(B, C, h, w)`` into anomaly maps ``(B, 1, H, W)``: mean of the channels, enlarged, smoothed."""
        error = error.mean(1, keepdim=True)
        if self.size != self.image_size:
            error = F.interpolate(error, self.image_size, mode="bilinear")
        smoothed: torch.Tensor = self.smooth(error)
        return smoothed


class Pixels(Space):
    """Images in [-1, 1] themselves, in colour or grey. The unit of an error is the full range.

    Args:
        image_size: Height and width of the images in pixels, each at least 28.
        channels: 3 for colour; 1 turns images grey.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    bound = nn.Tanh

    def __init__(self, image_size: tuple[int, int], channels: int, map_sigma: float) -> None:
        height, width = image_size
        if min(image_size) < MINIMUM_IMAGE_SIZE:
            nearest = (max(height, MINIMUM_IMAGE_SIZE), max(width, MINIMUM_IMAGE_SIZE))
            rule = f"each side must be at least {MINIMUM_IMAGE_SIZE}"
            msg = f"image_size is {image_size}; {rule}: the nearest is {nearest}."
            raise ValueError(msg)
        if channels not in {1, 3}:
            msg = f"input_channels is {channels}; choose 1 (grey) or 3 (colour)."
            raise ValueError(msg)
        super().__init__(image_size, channels, image_size, map_sigma)
        self.register_buffer("luminance", torch.tensor(LUMINANCE).view(1, 3, 1, 1), persistent=False)
        self.luminance: torch.Tensor

    def target(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images, grey if the space has one channel; ``(B, 1, H, W)`` is taken as it is then."""
        if self.channels == 1 and images.shape[1] == 3:
            return (images * self.luminance).sum(1, keepdim=True)
        return images

    def error(self, target: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the absolute differences as a fraction of the full range, in [0, 1]."""
        return (target - reconstruction).abs() / 2

    def show(self, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction with three channels, scaled to [0, 1]."""
        return (reconstruction.expand(-1, 3, -1, -1) + 1) / 2

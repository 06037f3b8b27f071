# SPDX-License-Identifier: Apache-2.0
"""What the torch models of the package share: what goes in, what comes out, and that images keep to themselves."""

from abc import abstractmethod

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import GaussianBlur2d
from torch import nn

from ganomaly_plugin.models.components.dcgan import MINIMUM_IMAGE_SIZE

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow and torchvision have them."""


class DetectorModel(nn.Module):
    """Base of the torch models: images of one size and number of channels in, a score and a map out.

    A subclass implements :meth:`infer` and, where it rebuilds images, :meth:`rebuild`.

    Args:
        image_size: Height and width of the images in pixels, each at least 28.
        input_channels: 3 for colour, 1 for grey; colour images are turned grey inside the model.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, image_size: tuple[int, int], input_channels: int = 3, map_sigma: float = 2.0) -> None:
        super().__init__()
        height, width = image_size
        if min(height, width) < MINIMUM_IMAGE_SIZE:
            nearest = (max(height, MINIMUM_IMAGE_SIZE), max(width, MINIMUM_IMAGE_SIZE))
            rule = f"each side must be at least {MINIMUM_IMAGE_SIZE}"
            msg = f"image_size is {image_size}; {rule}: the nearest is {nearest}."
            raise ValueError(msg)
        if input_channels not in {1, 3}:
            msg = f"input_channels is {input_channels}; choose 1 (grey) or 3 (colour)."
            raise ValueError(msg)
        # The blur's kernel reaches 4 standard deviations and is reflected at the border.
        largest_sigma = (min(height, width) - 1) / 4 - 0.5
        if not 0 < map_sigma <= largest_sigma:
            msg = f"map_sigma is {map_sigma} pixels; for images of {image_size} choose one in (0, {largest_sigma}]."
            raise ValueError(msg)
        self.image_size = image_size
        self.input_channels = input_channels
        self.smooth = GaussianBlur2d(sigma=map_sigma)
        self.register_buffer("luminance", torch.tensor(LUMINANCE).view(1, 3, 1, 1), persistent=False)
        self.luminance: torch.Tensor

    @abstractmethod
    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, input_channels, H, W)`` in [-1, 1], each by itself.

        Returns:
            ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``, non-negative.
        """

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images ``(B, input_channels, H, W)`` in [-1, 1], of their shape and range."""
        raise NotImplementedError

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the model makes of images, ``(B, 3, H, W)`` in [0, 1], for people to look at."""
        return (self.rebuild(self.to_input(images)).expand(-1, 3, -1, -1) + 1) / 2

    def predict(self, images: torch.Tensor) -> InferenceBatch:
        """Score images in evaluation.

        On a CPU the images pass one by one: kernels split the work of a batch among threads in ways that change the
        last bits of a result, and a score must not depend on an image's neighbours. Accelerators and exported graphs
        take the batch as a whole.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``, both non-negative.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
        """
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self.infer(self.to_input(images))
        scores, _, maps, _ = zip(*(self.infer(self.to_input(image)) for image in images.split(1)), strict=True)
        return InferenceBatch(pred_score=torch.cat(scores), anomaly_map=torch.cat(maps))

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """Bring images into the networks' channels and memory layout."""
        if images.shape[-2:] != self.image_size:
            msg = (
                f"The images are {tuple(images.shape[-2:])} pixels, but the model is built for {self.image_size}: "
                f"set image_size to the images' size, or let a pre-processor resize them."
            )
            raise ValueError(msg)
        if self.input_channels == 1 and images.shape[1] == 3:
            images = (images * self.luminance).sum(1, keepdim=True)
        return images.contiguous(memory_format=torch.channels_last)


def check_at_least(minimum: float, **values: float) -> None:
    """Refuse arguments below their minimum.

    Raises:
        ValueError: Naming the argument, its value and the minimum.
    """
    for name, value in values.items():
        if not value >= minimum:
            msg = f"{name} is {value}; it must be at least {minimum}."
            raise ValueError(msg)


def check_share(**values: float) -> None:
    """Refuse arguments outside [0, 1].

    Raises:
        ValueError: Naming the argument, its value and the range.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            msg = f"{name} is {value}; it is a share, which lies in [0, 1]."
            raise ValueError(msg)


def check_adam(lr: float, beta1: float = 0.9, beta2: float = 0.999) -> None:
    """Refuse what Adam cannot train with.

    Raises:
        ValueError: Naming the argument, its value and the rule.
    """
    if not lr > 0:
        msg = f"lr is {lr}; the learning rate must be positive (GANomaly's is 0.0002)."
        raise ValueError(msg)
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            msg = f"{name} is {value}; Adam's decay rates lie in [0, 1)."
            raise ValueError(msg)

# SPDX-License-Identifier: Apache-2.0
"""What the torch models of the package share: what goes in, what comes out, and that images keep to themselves."""

from abc import abstractmethod

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import GaussianBlur2d
from torch import nn

from ganomaly_plugin.models.components.dcgan import Pyramid

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow and torchvision have them."""


class DetectorModel(nn.Module):
    """Base of the torch models: images of one size and number of channels in, a score and a map out.

    A subclass implements :meth:`infer` and, where it rebuilds images, :meth:`rebuild`.

    Args:
        pyramid: Shape of the networks, for images with one channel or three; colour images are turned grey inside a
            model with one.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, map_sigma: float) -> None:
        super().__init__()
        if pyramid.channels not in {1, 3}:
            msg = f"input_channels is {pyramid.channels}; choose 1 (grey) or 3 (colour)."
            raise ValueError(msg)
        # The blur's kernel reaches 4 standard deviations and is reflected at the border.
        largest_sigma = (min(pyramid.image_size) - 1) / 4 - 0.5
        if not 0 < map_sigma <= largest_sigma:
            size = pyramid.image_size
            msg = f"map_sigma is {map_sigma} pixels; for images of {size} choose one in (0, {largest_sigma}]."
            raise ValueError(msg)
        self.pyramid = pyramid
        self.smooth = GaussianBlur2d(sigma=map_sigma)
        self.register_buffer("luminance", torch.tensor(LUMINANCE).view(1, 3, 1, 1), persistent=False)
        self.luminance: torch.Tensor

    @abstractmethod
    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` in [-1, 1], each by itself.

        Returns:
            ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``, non-negative.
        """

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images ``(B, C, H, W)`` in [-1, 1], of their shape and range."""
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
        if images.shape[-2:] != self.pyramid.image_size:
            msg = (
                f"The images are {tuple(images.shape[-2:])} pixels, but the model is built for "
                f"{self.pyramid.image_size}: set image_size to the images' size, or let a pre-processor resize them."
            )
            raise ValueError(msg)
        if self.pyramid.channels == 1 and images.shape[1] == 3:
            images = (images * self.luminance).sum(1, keepdim=True)
        return images.contiguous(memory_format=torch.channels_last)

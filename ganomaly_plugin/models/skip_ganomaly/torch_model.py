# SPDX-License-Identifier: Apache-2.0
"""The networks of Skip-GANomaly (Akcay et al., IJCNN 2019), in plain PyTorch."""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import nn

from ganomaly_plugin.models.components.checks import check_share
from ganomaly_plugin.models.components.dcgan import Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.gan_model import GANModel
from ganomaly_plugin.models.components.scores import reconstruction_error

WIDENING = 8
"""Widest layer of either network, as a multiple of the narrowest (pix2pix, Isola et al., 2017)."""


class TrainingOutput(NamedTuple):
    """Images ``(B, C, H, W)``, what the generator makes of them, and the discriminator's opinion of both."""

    images: torch.Tensor
    reconstructions: torch.Tensor
    real_logits: torch.Tensor
    real_features: torch.Tensor
    fake_logits: torch.Tensor
    fake_features: torch.Tensor


class UNet(nn.Module):
    """Encoder and decoder with a connection from each feature map to its mirror image.

    The image is halved until its shorter side is one pixel. An odd side is floored on the way down, and restored by
    output padding on the way up.

    Args:
        pyramid: Shape of the network, of which image size, channels and features count.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        height, width = pyramid.image_size
        n_stages = min(height, width).bit_length() - 1
        sizes = [(height >> stage, width >> stage) for stage in range(n_stages + 1)]
        widths = [pyramid.channels, *(pyramid.n_features * min(2**stage, WIDENING) for stage in range(n_stages))]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for stage, ((outer, inner), (larger, smaller)) in enumerate(
            zip(pairwise(widths), pairwise(sizes), strict=True), start=1
        ):
            outermost, innermost = stage == 1, stage == n_stages
            self.down.append(
                nn.Sequential(
                    nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=False),
                    # One pixel of one image has no batch statistics.
                    nn.Identity() if outermost or innermost else nn.BatchNorm2d(inner),
                    nn.LeakyReLU(0.2),
                )
            )
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    nn.ConvTranspose2d(
                        inner if innermost else 2 * inner,
                        outer,
                        4,
                        stride=2,
                        padding=1,
                        output_padding=(larger[0] - 2 * smaller[0], larger[1] - 2 * smaller[1]),
                        bias=outermost,
                    ),
                    nn.Tanh() if outermost else nn.BatchNorm2d(outer),
                )
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Rebuild images ``(B, channels, H, W)`` in [-1, 1]."""
        features = [self.down[0](images)]
        for layer in self.down[1:]:
            features.append(layer(features[-1]))
        rebuilt = features.pop()
        for layer in reversed(self.up):
            rebuilt = layer(rebuilt)
            if features:
                rebuilt = torch.cat([features.pop(), rebuilt], 1)
        return rebuilt


class FeatureDiscriminator(nn.Module):
    """Tells images from reconstructions by a vector of features.

    Args:
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.features = Encoder(replace(pyramid, max_features=WIDENING * pyramid.n_features))
        # The code's 3x3 kernel on one padded pixel, without the weights that see padding alone.
        self.classifier = nn.Conv2d(pyramid.latent_vec_size, 1, 1, bias=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge images ``(B, C, H, W)``.

        Returns:
            Logits ``(B,)``, positive for real, and features ``(B, latent_vec_size, 1, 1)``.
        """
        features: torch.Tensor = self.features(images)
        return self.classifier(features).flatten(), features


class SkipGAN(nn.Module):
    """Generator and discriminator.

    Args:
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.generator = UNet(pyramid)
        self.discriminator = FeatureDiscriminator(pyramid)
        initialise_weights(self)


class SkipGANomalyModel(GANModel[SkipGAN]):
    """A U-Net and its discriminator, with anomaly score and map.

    The score is ``(1 - weight)`` times the mean squared difference of image and reconstruction plus ``weight`` times
    that of the discriminator's features (paper, eq. 6), so the discriminator is part of the inference.

    Args:
        pyramid: Shape of the networks.
        weight: Share of the discriminator's features in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, weight: float, map_sigma: float) -> None:
        super().__init__(pyramid, map_sigma)
        check_share(weight=weight)
        self.weight = weight
        self.adopt(SkipGAN(pyramid))

    def forward(self, images: torch.Tensor) -> TrainingOutput | InferenceBatch:
        """Rebuild and judge images in training, score them in evaluation.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            In training what the losses need; otherwise ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``.
        """
        if not self.training:
            return self.predict(images)
        images = self.to_input(images)
        reconstructions = self.networks.generator(images)
        return TrainingOutput(
            images,
            reconstructions,
            *self.networks.discriminator(images),
            *self.networks.discriminator(reconstructions),
        )

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images ``(B, C, H, W)``."""
        reconstructions: torch.Tensor = self.averaged.generator(images)
        return reconstructions

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` by the averaged networks."""
        rebuilt = self.rebuild(images)
        (_, features), (_, rebuilt_features) = self.averaged.discriminator(images), self.averaged.discriminator(rebuilt)
        of_pixels = (images - rebuilt).square().flatten(1).mean(1)
        of_features = (features - rebuilt_features).square().flatten(1).mean(1)
        score = (1 - self.weight) * of_pixels + self.weight * of_features
        return InferenceBatch(pred_score=score, anomaly_map=self.smooth(reconstruction_error(images, rebuilt)))

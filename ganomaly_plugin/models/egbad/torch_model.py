# SPDX-License-Identifier: Apache-2.0
"""The networks of EGBAD (Zenati et al., 2018), a bidirectional GAN, in plain PyTorch."""

from typing import Literal, get_args

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.dcgan import (
    Decoder,
    Encoder,
    initialise_weights,
    pyramid_sizes,
    pyramid_widths,
)
from ganomaly_plugin.models.components.detector_model import check_at_least, check_share
from ganomaly_plugin.models.components.gan_model import GANModel
from ganomaly_plugin.models.components.scores import reconstruction_error

Score = Literal["feature_matching", "cross_entropy"]
SCORES: tuple[str, ...] = get_args(Score)

LATENT_FEATURES = 512
"""Width of the discriminator's layer that reads the code."""
JOINT_FEATURES = 1024
"""Width of the discriminator's layer whose activations are its features."""


class JointDiscriminator(nn.Module):
    """Tells an image with its encoding from a generated image with its code.

    Args:
        image_size: Height and width of the images in pixels.
        input_channels: Channels of the images.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any convolution, ``None`` for unbounded doubling.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int,
        n_features: int,
        latent_vec_size: int,
        max_features: int | None = None,
    ) -> None:
        super().__init__()
        sizes = pyramid_sizes(image_size)[1:]
        width = pyramid_widths(len(sizes), n_features, max_features)[-1] * sizes[-1][0] * sizes[-1][1]
        self.of_image = Encoder(image_size, input_channels, n_features, 1, 0, max_features).features
        self.of_latent = nn.Linear(latent_vec_size, LATENT_FEATURES)
        self.joint = nn.Linear(width + LATENT_FEATURES, JOINT_FEATURES)
        self.classifier = nn.Linear(JOINT_FEATURES, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge pairs.

        Args:
            images: Shape ``(B, input_channels, H, W)``.
            latent: Codes ``(B, Z, 1, 1)``.

        Returns:
            Logits ``(B,)``, positive for an image with its encoding, and features ``(B, 1024)``.
        """
        image_part = self.dropout(self.of_image(images)).flatten(1)
        latent_part = self.dropout(F.leaky_relu(self.of_latent(latent.flatten(1)), 0.1))
        features = F.leaky_relu(self.joint(torch.cat([image_part, latent_part], 1)), 0.1)
        return self.classifier(self.dropout(features)).flatten(), features


class BiGAN(nn.Module):
    """Encoder, generator and joint discriminator.

    Args:
        image_size: Height and width of the images in pixels.
        input_channels: Channels of the images.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any convolution, ``None`` for unbounded doubling.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int,
        n_features: int,
        latent_vec_size: int,
        max_features: int | None = None,
    ) -> None:
        super().__init__()
        shape = (image_size, input_channels, n_features, latent_vec_size)
        self.encoder = Encoder(*shape, max_features=max_features)
        self.generator = Decoder(*shape, max_features=max_features)
        self.discriminator = JointDiscriminator(*shape, max_features=max_features)
        initialise_weights(self)


class EGBADModel(GANModel[BiGAN]):
    """A bidirectional GAN with its anomaly score and map.

    The score is ``(1 - weight)`` times the summed absolute reconstruction error plus ``weight`` times either the summed
    absolute difference of the discriminator's features for the image and its reconstruction, each with the image's
    code, or the cross-entropy of calling the image and its code a true pair (paper, section 3). Both need the
    discriminator, so it is part of the inference.

    Args:
        image_size: Height and width of the images in pixels, each at least 28.
        input_channels: 3 for colour, 1 for grey; colour images are turned grey inside the model.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any convolution, ``None`` for unbounded doubling.
        score: ``feature_matching`` or ``cross_entropy``.
        weight: Share of the discriminator's part in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int = 3,
        n_features: int = 32,
        latent_vec_size: int = 200,
        max_features: int | None = 512,
        score: Score = "feature_matching",
        weight: float = 0.1,
        map_sigma: float = 2.0,
    ) -> None:
        super().__init__(image_size, input_channels, map_sigma)
        check_at_least(1, n_features=n_features, latent_vec_size=latent_vec_size)
        check_share(weight=weight)
        if score not in SCORES:
            msg = f"score is {score!r}; choose one of {', '.join(SCORES)}."
            raise ValueError(msg)
        self.score = score
        self.weight = weight
        self.latent_vec_size = latent_vec_size
        self.adopt(BiGAN(image_size, input_channels, n_features, latent_vec_size, max_features))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | InferenceBatch:
        """Judge true pairs and generated ones in training, score images in evaluation.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            In training the discriminator's logits ``(B,)`` of the images with their encodings, and of as many generated
            images with their codes; otherwise ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``.
        """
        if not self.training:
            return self.predict(images)
        images = self.to_input(images)
        networks = self.networks
        latent = torch.randn(len(images), self.latent_vec_size, 1, 1, device=images.device)
        true_logits, _ = networks.discriminator(images, networks.encoder(images))
        generated_logits, _ = networks.discriminator(networks.generator(latent), latent)
        return true_logits, generated_logits

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the generator makes of the encodings of images ``(B, input_channels, H, W)``."""
        reconstructions: torch.Tensor = self.averaged.generator(self.averaged.encoder(images))
        return reconstructions

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, input_channels, H, W)`` by the averaged networks."""
        networks = self.averaged
        latent = networks.encoder(images)
        reconstructions = networks.generator(latent)
        residual = (images - reconstructions).abs().flatten(1).sum(1)
        logits, features = networks.discriminator(images, latent)
        if self.score == "feature_matching":
            _, rebuilt_features = networks.discriminator(reconstructions, latent)
            second = (features - rebuilt_features).abs().sum(1)
        else:
            second = F.softplus(-logits)
        score = (1 - self.weight) * residual + self.weight * second
        error = reconstruction_error(images, reconstructions)
        return InferenceBatch(pred_score=score, anomaly_map=self.smooth(error))

# SPDX-License-Identifier: Apache-2.0
"""The networks of EGBAD (Zenati et al., 2018), a bidirectional GAN, in plain PyTorch."""

from typing import Literal, get_args

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_share
from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
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
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        height, width = pyramid.sizes[-1]
        image_features = pyramid.widths[-1] * height * width
        self.of_image = Encoder(pyramid).features
        self.of_latent = nn.Linear(pyramid.latent_vec_size, LATENT_FEATURES)
        self.joint = nn.Linear(image_features + LATENT_FEATURES, JOINT_FEATURES)
        self.classifier = nn.Linear(JOINT_FEATURES, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge pairs.

        Args:
            images: Shape ``(B, C, H, W)``.
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
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.encoder = Encoder(pyramid)
        self.generator = Decoder(pyramid)
        self.discriminator = JointDiscriminator(pyramid)
        initialise_weights(self)


class EGBADModel(GANModel[BiGAN]):
    """A bidirectional GAN with its anomaly score and map.

    The score is ``(1 - weight)`` times the summed absolute reconstruction error plus ``weight`` times either the summed
    absolute difference of the discriminator's features for the image and its reconstruction, each with the image's
    code, or the cross-entropy of calling the image and its code a true pair (paper, section 3). Both need the
    discriminator, so it is part of the inference.

    Args:
        pyramid: Shape of the networks.
        score: ``feature_matching`` or ``cross_entropy``.
        weight: Share of the discriminator's part in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, score: Score, weight: float, map_sigma: float) -> None:
        super().__init__(pyramid, map_sigma)
        check_share(weight=weight)
        if score not in SCORES:
            msg = f"score is {score!r}; choose one of {', '.join(SCORES)}."
            raise ValueError(msg)
        self.score = score
        self.weight = weight
        self.adopt(BiGAN(pyramid))

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
        latent = torch.randn(len(images), self.pyramid.latent_vec_size, 1, 1, device=images.device)
        true_logits, _ = networks.discriminator(images, networks.encoder(images))
        generated_logits, _ = networks.discriminator(networks.generator(latent), latent)
        return true_logits, generated_logits

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the generator makes of the encodings of images ``(B, C, H, W)``."""
        reconstructions: torch.Tensor = self.averaged.generator(self.averaged.encoder(images))
        return reconstructions

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` by the averaged networks."""
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

# SPDX-License-Identifier: Apache-2.0
"""The networks of EGBAD (Zenati et al., 2018), a bidirectional GAN, in plain PyTorch."""

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_choice, check_fraction
from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.gan_loss import discriminator_loss, generator_loss
from ganomaly_plugin.models.components.space import Space

Score = Literal["feature_matching", "cross_entropy"]

LATENT_FEATURES = 512
"""Width of the discriminator's layer that reads the code."""
JOINT_FEATURES = 1024
"""Width of the discriminator's layer whose activations are its features."""


class JointDiscriminator(nn.Module):
    """Tells a target with its encoding from a generated target with its code.

    Args:
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        height, width = pyramid.sizes[-1]
        target_features = pyramid.widths[-1] * height * width
        self.of_image = Encoder(pyramid).features
        self.of_latent = nn.Linear(pyramid.latent_vec_size, LATENT_FEATURES)
        self.joint = nn.Linear(target_features + LATENT_FEATURES, JOINT_FEATURES)
        self.classifier = nn.Linear(JOINT_FEATURES, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, target: torch.Tensor, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Discriminate pairs.

        Args:
            target: Shape ``(B, C, h, w)``.
            latent: Codes ``(B, Z, 1, 1)``.

        Returns:
            Logits ``(B,)``, positive for a target with its encoding, and features ``(B, 1024)``.
        """
        target_part = self.dropout(self.of_image(target)).flatten(1)
        latent_part = self.dropout(F.leaky_relu(self.of_latent(latent.flatten(1)), 0.1))
        features = F.leaky_relu(self.joint(torch.cat([target_part, latent_part], 1)), 0.1)
        return self.classifier(self.dropout(features)).flatten(), features


class EGBADModel(DetectorModel):
    """A bidirectional GAN with its anomaly score and map.

    The score is ``(1 - weight)`` times the summed absolute reconstruction error plus ``weight`` times either the summed
    absolute difference of the discriminator's features for target and reconstruction, each with the target's code, or
    the cross-entropy of calling the target and its code a true pair (paper, section 3). Both need the discriminator.

    Args:
        space: What is reconstructed.
        pyramid: Shape of the networks.
        score: ``feature_matching`` or ``cross_entropy``.
        weight: Fraction of the discriminator's part in the score, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, space: Space, pyramid: Pyramid, score: Score, weight: float) -> None:
        check_fraction(weight=weight)
        check_choice(get_args(Score), score=score)
        encoder, generator, discriminator = Encoder(pyramid), Decoder(pyramid), JointDiscriminator(pyramid)
        initialise_weights(nn.ModuleList([encoder, generator, discriminator]))
        networks = {"discriminator": discriminator, "generator": generator, "encoder": encoder}
        super().__init__(space, nn.ModuleDict(networks))
        self.latent_vec_size = pyramid.latent_vec_size
        self.score_name = score
        self.weight = weight

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each network's loss for targets ``(B, C, h, w)`` with their encodings, and as many generated pairs."""
        latent = torch.randn(len(target), self.latent_vec_size, 1, 1, device=target.device)
        real_logits, _ = self.networks["discriminator"](target, self.networks["encoder"](target))
        generated_logits, _ = self.networks["discriminator"](self.networks["generator"](latent), latent)
        return {
            "loss_discriminator": discriminator_loss(real_logits, generated_logits),
            "loss_generator": generator_loss(generated_logits),
            "loss_encoder": generator_loss(-real_logits),  # Real pairs called generated.
        }

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` by their reconstruction error and by the discriminator."""
        networks = self.inference_networks
        latent = networks["encoder"](target)
        reconstruction = networks["generator"](latent)
        residual = (target - reconstruction).abs().flatten(1).sum(1)
        logits, features = networks["discriminator"](target, latent)
        if self.score_name == "feature_matching":
            _, fake_features = networks["discriminator"](reconstruction, latent)
            second = (features - fake_features).abs().sum(1)
        else:
            second = F.softplus(-logits)
        score = (1 - self.weight) * residual + self.weight * second
        return Output(score, self.space.to_map(self.space.error(target, reconstruction)), reconstruction)

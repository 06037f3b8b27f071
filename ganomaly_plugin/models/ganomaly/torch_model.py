# SPDX-License-Identifier: Apache-2.0
"""The networks of GANomaly (Akcay et al., ACCV 2018), in plain PyTorch."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from ganomaly_plugin.models.components.checks import check_choice
from ganomaly_plugin.models.components.dcgan import Decoder, Discriminator, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.gan_loss import generator_loss
from ganomaly_plugin.models.components.scores import (
    latent_l1_score,
    latent_l2_score,
    latent_relative_score,
    latent_whitened_score,
)
from ganomaly_plugin.models.components.space import Space

from .loss import discriminator_loss, feature_matching_loss, latent_loss, reconstruction_loss

AdversarialLoss = Literal["feature_matching", "bce"]
Score = Literal["latent_l1", "latent_l2", "latent_relative", "latent_whitened", "reconstruction"]

LATENT_SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "latent_l1": latent_l1_score,
    "latent_l2": latent_l2_score,
    "latent_relative": latent_relative_score,
}
"""Scores of the two codes alone."""


class GeneratorOutput(NamedTuple):
    """Outputs of the generator for a batch.

    Attributes:
        reconstruction: Reconstructions ``(B, C, h, w)``.
        latent: Codes of the targets, ``(B, Z, 1, 1)``.
        latent_of_reconstruction: Codes of the reconstructions, same shape.
    """

    reconstruction: torch.Tensor
    latent: torch.Tensor
    latent_of_reconstruction: torch.Tensor


class Generator(nn.Module):
    """Encoder, decoder and a second encoder with weights of its own (paper, section 3.1).

    Args:
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.encoder1 = Encoder(pyramid)
        self.decoder = Decoder(pyramid)
        self.encoder2 = Encoder(pyramid)
        initialise_weights(self)

    def forward(self, target: torch.Tensor) -> GeneratorOutput:
        """Reconstruct targets ``(B, C, h, w)``, and encode them before and after."""
        latent = self.encoder1(target)
        reconstruction = self.decoder(latent)
        return GeneratorOutput(reconstruction, latent, self.encoder2(reconstruction))


class GANomalyModel(DetectorModel):
    """Generator and discriminator, with anomaly score and map. Scoring needs the generator alone.

    Args:
        space: What is reconstructed.
        pyramid: Shape of the networks.
        adversarial: ``feature_matching`` (the paper) or ``bce`` (its code in 2018).
        score: ``latent_l1`` (the paper), ``latent_l2`` (its code), ``latent_relative`` (as a fraction of the code's
            length), ``latent_whitened`` (in units of what is usual among training images, see ``whitening``) or
            ``reconstruction`` (the mean error).
        average_weights: Whether to score with an EMA of the generator's weights.

    Attributes:
        whitening: Buffer ``(Z, Z)`` that multiplies the latent difference in ``latent_whitened``; the identity until
            the training sets it.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(
        self, space: Space, pyramid: Pyramid, adversarial: AdversarialLoss, score: Score, average_weights: bool
    ) -> None:
        check_choice(get_args(AdversarialLoss), adversarial=adversarial)
        check_choice(get_args(Score), score=score)
        if score == "latent_whitened" and not pyramid.add_final_conv_layer:
            msg = "score is 'latent_whitened', which needs a latent vector: set add_final_conv_layer to True."
            raise ValueError(msg)
        generator, discriminator = Generator(pyramid), Discriminator(pyramid)
        initialise_weights(discriminator)
        networks = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
        super().__init__(space, networks, inference=["generator"], average=average_weights)
        self.adversarial = adversarial
        self.score_name = score
        if pyramid.add_final_conv_layer:
            self.register_buffer("whitening", torch.eye(pyramid.latent_vec_size))
            self.whitening: torch.Tensor

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unweighted losses of targets ``(B, C, h, w)``: one generator pass, two discriminator passes."""
        reconstruction, latent, latent_of_reconstruction = self.networks["generator"](target)
        real_logits, real_features = self.networks["discriminator"](target)
        fake_logits, fake_features = self.networks["discriminator"](reconstruction)
        return {
            "loss_adversarial": feature_matching_loss(real_features, fake_features)
            if self.adversarial == "feature_matching"
            else generator_loss(fake_logits),
            "loss_reconstruction": reconstruction_loss(target, reconstruction),
            "loss_latent": latent_loss(latent, latent_of_reconstruction),
            "loss_discriminator": discriminator_loss(real_logits, fake_logits),
        }

    def latent_difference(self, images: torch.Tensor) -> torch.Tensor:
        """Return the codes of pre-processed images less those of their reconstructions, ``(B, N)``."""
        _, latent, latent_of_reconstruction = self.inference_networks["generator"](self.space(images))
        return (latent - latent_of_reconstruction).flatten(1)

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` by their codes, and map their reconstruction errors."""
        reconstruction, latent, latent_of_reconstruction = self.inference_networks["generator"](target)
        error = self.space.error(target, reconstruction)
        if self.score_name == "latent_whitened":
            score = latent_whitened_score(latent, latent_of_reconstruction, self.whitening)
        elif self.score_name == "reconstruction":
            score = error.flatten(1).mean(1)
        else:
            score = LATENT_SCORES[self.score_name](latent, latent_of_reconstruction)
        return Output(score, self.space.to_map(error), reconstruction)

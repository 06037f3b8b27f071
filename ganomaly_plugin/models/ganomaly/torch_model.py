# SPDX-License-Identifier: Apache-2.0
"""The networks of GANomaly (Akcay et al., ACCV 2018), in plain PyTorch."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from anomalib.data import InferenceBatch
from torch import nn

from ganomaly_plugin.models.components.averaging import power_average
from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel
from ganomaly_plugin.models.components.scores import (
    latent_l1_score,
    latent_l2_score,
    latent_relative_score,
    latent_whitened_score,
    reconstruction_error,
)

Score = Literal["latent_l1", "latent_l2", "latent_relative", "latent_whitened", "reconstruction"]
SCORES: tuple[str, ...] = get_args(Score)


class GeneratorOutput(NamedTuple):
    """What the generator makes of a batch.

    Attributes:
        images: The images as the networks see them, ``(B, C, H, W)`` in [-1, 1].
        reconstructions: Same shape and range.
        latent: Codes of the images, ``(B, Z, 1, 1)``.
        latent_of_reconstruction: Codes of the reconstructions, same shape.
    """

    images: torch.Tensor
    reconstructions: torch.Tensor
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

    def forward(self, images: torch.Tensor) -> GeneratorOutput:
        """Rebuild images ``(B, C, H, W)`` in [-1, 1] and encode them before and after."""
        latent = self.encoder1(images)
        reconstructions = self.decoder(latent)
        return GeneratorOutput(images, reconstructions, latent, self.encoder2(reconstructions))


class GANomalyModel(DetectorModel):
    """The generator with its anomaly score and map.

    The discriminator is needed for training alone and lives in the Lightning module, so nothing that infers carries it.

    Args:
        pyramid: Shape of the networks.
        score: ``latent_l1`` (the paper), ``latent_l2`` (its code), ``latent_relative`` (as a share of the code's
            length), ``latent_whitened`` (in units of what is usual among training images, see ``precision``) or
            ``reconstruction`` (the map's mean).
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        average_weights: Whether to infer with a running average of the generator's weights.

    Attributes:
        precision: Buffer ``(Z, Z)`` that weighs the latent difference in
            ``latent_whitened``; the identity until the training sets it.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, score: Score, map_sigma: float, average_weights: bool) -> None:
        super().__init__(pyramid, map_sigma)
        if score not in SCORES:
            msg = f"score is {score!r}; choose one of {', '.join(SCORES)}."
            raise ValueError(msg)
        if score == "latent_whitened" and not pyramid.add_final_conv_layer:
            msg = "score is 'latent_whitened', which needs a latent vector: set add_final_conv_layer to True."
            raise ValueError(msg)
        self.score = score
        self.generator = Generator(pyramid)
        initialise_weights(self.generator)
        if pyramid.add_final_conv_layer:
            self.register_buffer("precision", torch.eye(pyramid.latent_vec_size))
            self.precision: torch.Tensor
        # A quarter faster than the default layout on CPUs, and what tensor cores want.
        self.to(memory_format=torch.channels_last)
        self.average = power_average(self.generator) if average_weights else None

    @property
    def inference_generator(self) -> Generator:
        """The generator that scores and reconstructs: the averaged one, if there is one."""
        if self.average is None:
            return self.generator
        averaged: Any = self.average.module
        return averaged

    def update_average(self) -> None:
        """Let the average follow the generator; call after each optimiser step."""
        if self.average is not None:
            self.average.update_parameters(self.generator)

    def forward(self, images: torch.Tensor) -> GeneratorOutput | InferenceBatch:
        """Rebuild images in training, score them in evaluation.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            In training the generator's output; otherwise what :meth:`predict` returns. The map lies in [0, 1].
        """
        if self.training:
            output: GeneratorOutput = self.generator(self.to_input(images))
            return output
        return self.predict(images)

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images ``(B, C, H, W)``."""
        reconstructions: torch.Tensor = self.inference_generator.decoder(self.inference_generator.encoder1(images))
        return reconstructions

    def latent_codes(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes of images as in :meth:`forward` and of their reconstructions, each ``(B, Z, h, w)``."""
        output = self.inference_generator(self.to_input(images))
        return output.latent, output.latent_of_reconstruction

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` by their codes, and map where they were rebuilt badly."""
        images, reconstructions, latent, latent_of_reconstruction = self.inference_generator(images)
        error = reconstruction_error(images, reconstructions)
        if self.score == "latent_l1":
            score = latent_l1_score(latent, latent_of_reconstruction)
        elif self.score == "latent_l2":
            score = latent_l2_score(latent, latent_of_reconstruction)
        elif self.score == "latent_relative":
            score = latent_relative_score(latent, latent_of_reconstruction)
        elif self.score == "latent_whitened":
            score = latent_whitened_score(latent, latent_of_reconstruction, self.precision)
        else:
            score = error.flatten(1).mean(1)
        return InferenceBatch(pred_score=score, anomaly_map=self.smooth(error))

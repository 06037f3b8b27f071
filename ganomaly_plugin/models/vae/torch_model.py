# SPDX-License-Identifier: Apache-2.0
"""A variational autoencoder that scores by reconstruction probability (An and Cho, 2015), in plain PyTorch."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel

from .loss import gaussian_nll

LOG_VARIANCE_LIMIT = 10.0
"""Bound on the codes' log-variances, beyond which exponentials overflow before they mean anything."""


class VAEOutput(NamedTuple):
    """What the model makes of a batch in training.

    Attributes:
        images: The images as the encoder sees them, ``(B, C, H, W)`` in [-1, 1].
        mean: Mean of every pixel under the decoder, same shape and range.
        deviation: Standard deviation of every pixel, same shape.
        latent_mean: Means of the codes, ``(B, Z, 1, 1)``.
        latent_log_variance: Log-variances of the codes, same shape.
    """

    images: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    latent_mean: torch.Tensor
    latent_log_variance: torch.Tensor


class VAEModel(DetectorModel):
    """Encoder and decoder of DCGAN blocks, each to a normal distribution.

    The score is minus the reconstruction probability (An and Cho, algorithm 4): the mean over samples of the code of
    the pixels' negative log-density. The least value that it can take, which the floor of the deviation sets, is
    subtracted, so that scores are not negative. The samples' noise is drawn once and belongs to the model, so a score
    is the same each time and in every export.

    Args:
        pyramid: Shape of the networks.
        n_samples: Samples of the code for a score.
        minimum_deviation: Floor of the pixels' standard deviations in the images' range of [-1, 1], without which the
            density of a border that never changes has no bound.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, n_samples: int, minimum_deviation: float, map_sigma: float) -> None:
        super().__init__(pyramid, map_sigma)
        check_at_least(1, n_samples=n_samples)
        check_at_least(1e-3, minimum_deviation=minimum_deviation)
        self.minimum_deviation = minimum_deviation
        self.encoder = Encoder(replace(pyramid, latent_vec_size=2 * pyramid.latent_vec_size))
        self.decoder = Decoder(replace(pyramid, channels=2 * pyramid.channels), bounded=False)
        initialise_weights(self)
        noise = torch.randn(n_samples, pyramid.latent_vec_size, 1, 1, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise)
        self.noise: torch.Tensor
        self.to(memory_format=torch.channels_last)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and log-variances of the codes ``(B, Z, 1, 1)`` of images ``(B, C, H, W)``."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def decode(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means in [-1, 1] and deviations of the pixels ``(B, C, H, W)`` for codes."""
        mean, deviation = self.decoder(codes).chunk(2, dim=1)
        return mean.tanh(), F.softplus(deviation) + self.minimum_deviation

    def forward(self, images: torch.Tensor) -> VAEOutput | InferenceBatch:
        """Rebuild images from one sample of their codes in training, score them in evaluation.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            In training the distributions; otherwise ``pred_score`` ``(B,)`` in nats a pixel above the least, and
            ``anomaly_map`` ``(B, 1, H, W)``, both non-negative and unbounded.
        """
        if not self.training:
            return self.predict(images)
        images = self.to_input(images)
        latent_mean, log_variance = self.encode(images)
        codes = latent_mean + (log_variance / 2).exp() * torch.randn_like(latent_mean)
        return VAEOutput(images, *self.decode(codes), latent_mean, log_variance)

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pixels' means for the codes' means."""
        return self.decode(self.encode(images)[0])[0]

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` by the negative log-density of their pixels."""
        latent_mean, log_variance = self.encode(images)
        samples = latent_mean.unsqueeze(1) + (log_variance / 2).exp().unsqueeze(1) * self.noise
        mean, deviation = self.decode(samples.flatten(0, 1))
        n_samples = len(self.noise)
        shape = (-1, n_samples, *mean.shape[1:])
        nll = gaussian_nll(images.unsqueeze(1), mean.reshape(shape), deviation.reshape(shape)).mean((1, 2))
        least = math.log(self.minimum_deviation) + math.log(2 * math.pi) / 2
        surprise = (nll - least).unsqueeze(1)
        return InferenceBatch(pred_score=surprise.flatten(1).mean(1), anomaly_map=self.smooth(surprise))

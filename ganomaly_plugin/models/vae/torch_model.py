# SPDX-License-Identifier: Apache-2.0
"""A variational autoencoder that scores by reconstruction probability (An and Cho, 2015), in plain PyTorch."""

import math
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.space import Space

from .loss import gaussian_nll, kl_divergence

LOG_VARIANCE_LIMIT = 10.0
"""Bound on the codes' log-variances, beyond which exponentials overflow before they mean anything."""


class GaussianAutoencoder(nn.Module):
    """Encoder and decoder of DCGAN blocks, each to a normal distribution.

    Args:
        pyramid: Shape of the networks.
        minimum_std: Floor of the decoder's standard deviations.
    """

    def __init__(self, pyramid: Pyramid, minimum_std: float) -> None:
        super().__init__()
        self.minimum_std = minimum_std
        self.encoder = Encoder(replace(pyramid, latent_vec_size=2 * pyramid.latent_vec_size))
        self.decoder = Decoder(replace(pyramid, channels=2 * pyramid.channels, bound=nn.Identity))
        self.bound = pyramid.bound()
        initialise_weights(self)

    def encode(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and log-variances of the codes ``(B, Z, 1, 1)`` of targets ``(B, C, h, w)``."""
        mean, log_variance = self.encoder(target).chunk(2, dim=1)
        return mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def decode(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and standard deviations of the target's elements, both ``(B, C, h, w)``, for codes."""
        mean, std = self.decoder(codes).chunk(2, dim=1)
        return self.bound(mean), F.softplus(std) + self.minimum_std


class VAEModel(DetectorModel):
    """A variational autoencoder with anomaly score and map.

    The score is minus the reconstruction probability (An and Cho, algorithm 4): the mean over samples of the code of
    the negative log-density of the target's elements. The smallest value that it can take, which the floor of the
    standard deviations sets, is subtracted, so that scores are not negative. The noise of the samples is a constant of
    the model, so a score is the same each time and in every export.

    Args:
        space: What is reconstructed.
        pyramid: Shape of the networks.
        n_samples: Samples of the code for a score.
        minimum_std: Floor of the standard deviations, without which the density of a constant border has no bound.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, space: Space, pyramid: Pyramid, n_samples: int, minimum_std: float) -> None:
        check_at_least(1, n_samples=n_samples)
        check_at_least(1e-3, minimum_std=minimum_std)
        networks = nn.ModuleDict({"autoencoder": GaussianAutoencoder(pyramid, minimum_std)})
        super().__init__(space, networks, average=False)
        self.minimum_std = minimum_std
        noise = torch.randn(n_samples, pyramid.latent_vec_size, 1, 1, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise)
        self.noise: torch.Tensor

    @property
    def autoencoder(self) -> GaussianAutoencoder:
        """Encoder and decoder, which are not averaged."""
        return cast("GaussianAutoencoder", self.networks["autoencoder"])

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the two parts of the negative evidence lower bound of targets ``(B, C, h, w)``, per element."""
        latent_mean, log_variance = self.autoencoder.encode(target)
        codes = latent_mean + (log_variance / 2).exp() * torch.randn_like(latent_mean)
        divergence = kl_divergence(latent_mean, log_variance).mean()
        return {
            "loss_reconstruction": gaussian_nll(target, *self.autoencoder.decode(codes)).mean(),
            "loss_divergence": divergence / target[0].numel(),
        }

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` by their negative log-density, in nats an element above the smallest.

        The reconstruction is the mean of the target's elements, averaged over the samples.
        """
        latent_mean, log_variance = self.autoencoder.encode(target)
        samples = latent_mean.unsqueeze(1) + (log_variance / 2).exp().unsqueeze(1) * self.noise
        mean, std = (
            values.unflatten(0, (-1, len(self.noise))) for values in self.autoencoder.decode(samples.flatten(0, 1))
        )
        smallest = math.log(self.minimum_std) + math.log(2 * math.pi) / 2
        nll = gaussian_nll(target.unsqueeze(1), mean, std).mean(1) - smallest
        return Output(nll.flatten(1).mean(1), self.space.to_map(nll), mean.mean(1))

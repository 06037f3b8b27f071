# SPDX-License-Identifier: Apache-2.0
"""The two parts of a variational autoencoder's negative evidence lower bound (Kingma and Welling, 2014)."""

import math

import torch


def gaussian_nll(target: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Negative log-density of every element under a normal distribution of its own; the shapes broadcast."""
    return ((target - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Divergence of each code's normal distribution ``(B, Z, 1, 1)`` from the standard one, summed to ``(B,)``."""
    return ((mean.square() + log_variance.exp() - 1 - log_variance) / 2).flatten(1).sum(1)

# SPDX-License-Identifier: Apache-2.0
"""The two parts of a variational autoencoder's negative evidence lower bound (Kingma and Welling, 2014)."""

import math

import torch


def gaussian_nll(images: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Negative log-density of every pixel under a normal distribution of its own, of the images' shape.

    Args:
        images: Any shape.
        mean: Means, of a shape that broadcasts.
        deviation: Standard deviations above zero, likewise.
    """
    return ((images - mean) / deviation).square() / 2 + deviation.log() + math.log(2 * math.pi) / 2


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Divergence of each code's normal distribution ``(B, Z, 1, 1)`` from the standard one, summed to ``(B,)``."""
    return ((mean.square() + log_variance.exp() - 1 - log_variance) / 2).flatten(1).sum(1)

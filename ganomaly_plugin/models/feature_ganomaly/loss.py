# SPDX-License-Identifier: Apache-2.0
"""The reconstruction loss of GANomaly on features; the others are GANomaly's own."""

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


def reconstruction_loss(
    target: torch.Tensor, reconstruction: torch.Tensor, log_variance: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Mean negative log-likelihood of targets under Gaussians, all ``(B, C, h, w)``, in nats an element.

    The constant ``log(2 pi) / 2`` is left out. With variances of one it is half the mean squared error.

    Args:
        target: Targets.
        reconstruction: Means of the Gaussians.
        log_variance: Logarithms of their variances.
        weights: Weights of the channels, of mean one, ``(C, 1, 1)``.
    """
    likelihood = F.gaussian_nll_loss(reconstruction, target, log_variance.exp(), reduction="none")
    return (likelihood * weights).mean()

# SPDX-License-Identifier: Apache-2.0
"""Anomaly scores and maps of reconstructing models: non-negative, and a matter of one image alone."""

import torch


def latent_l1_score(latent: torch.Tensor, latent_of_reconstruction: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of two latent codes ``(B, Z, h, w)``, as ``(B,)``.

    The GANomaly paper's score (eq. 5) divided by the code's length, which leaves the ranking as it is.
    """
    return (latent - latent_of_reconstruction).abs().flatten(1).mean(1)


def latent_l2_score(latent: torch.Tensor, latent_of_reconstruction: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two latent codes ``(B, Z, h, w)``, as ``(B,)``: the score of GANomaly's code."""
    return (latent - latent_of_reconstruction).square().flatten(1).mean(1)


def reconstruction_error(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Absolute difference of two images in [-1, 1], as a share of the full range.

    Args:
        images: Shape ``(B, C, H, W)``.
        reconstructions: Same shape.

    Returns:
        The mean over the channels, ``(B, 1, H, W)`` in [0, 1].
    """
    return (images - reconstructions).abs().mean(1, keepdim=True) / 2

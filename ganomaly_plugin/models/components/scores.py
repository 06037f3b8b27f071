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


def latent_relative_score(latent: torch.Tensor, latent_of_reconstruction: torch.Tensor) -> torch.Tensor:
    """Distance of two latent codes ``(B, Z, h, w)`` as a share of the first one's length, as ``(B,)``.

    Simple images, which have short codes and are rebuilt with ease, are not normal for that alone.
    """
    distance = (latent - latent_of_reconstruction).flatten(1).norm(dim=1)
    length = latent.flatten(1).norm(dim=1)
    return distance / length.clamp(min=torch.finfo(length.dtype).eps)


def latent_whitened_score(
    latent: torch.Tensor, latent_of_reconstruction: torch.Tensor, precision: torch.Tensor
) -> torch.Tensor:
    """Mean squared difference of two latent codes in units of what is usual among normal images.

    Args:
        latent: Codes ``(B, Z, 1, 1)``.
        latent_of_reconstruction: Codes of the same shape.
        precision: Symmetric matrix ``(Z, Z)`` of :func:`whitening_precision`; the identity gives
            :func:`latent_l2_score`.

    Returns:
        Scores ``(B,)``, about 1 for normal images.
    """
    difference = (latent - latent_of_reconstruction).flatten(1)
    return ((difference @ precision) * difference).mean(1).clamp(min=0)


def whitening_precision(differences: torch.Tensor, ridge: float = 0.01) -> torch.Tensor:
    """Return the inverse of the second moments of latent differences.

    Args:
        differences: Latent code minus code of the reconstruction, of normal images, ``(N, Z)``.
        ridge: Share of the mean variance that is added to every direction, so that those never seen to vary in few
            images do not weigh without bound.

    Returns:
        Symmetric positive definite matrix ``(Z, Z)``.
    """
    moments = differences.T @ differences / len(differences)
    variance = moments.diagonal().mean().clamp(min=torch.finfo(moments.dtype).eps)
    return torch.linalg.inv(moments + ridge * variance * torch.eye(len(moments), device=moments.device))


def reconstruction_error(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Absolute difference of two images in [-1, 1], as a share of the full range.

    Args:
        images: Shape ``(B, C, H, W)``.
        reconstructions: Same shape.

    Returns:
        The mean over the channels, ``(B, 1, H, W)`` in [0, 1].
    """
    return (images - reconstructions).abs().mean(1, keepdim=True) / 2

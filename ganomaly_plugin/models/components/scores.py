# SPDX-License-Identifier: Apache-2.0
"""Anomaly scores from latent codes: non-negative, each from one image alone."""

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
    """Distance of two latent codes ``(B, Z, h, w)`` as a fraction of the first one's length, as ``(B,)``.

    Otherwise simple images, which have short codes and are easy to reconstruct, would always score low.
    """
    distance = (latent - latent_of_reconstruction).flatten(1).norm(dim=1)
    length = latent.flatten(1).norm(dim=1)
    return distance / length.clamp(min=torch.finfo(length.dtype).eps)


def latent_whitened_score(
    latent: torch.Tensor, latent_of_reconstruction: torch.Tensor, whitening: torch.Tensor
) -> torch.Tensor:
    """Mean squared difference of two latent codes ``(B, Z, 1, 1)`` in units of normal images' differences, ``(B,)``.

    The matrix ``(Z, Z)`` is that of :func:`whitening_matrix`; the identity gives :func:`latent_l2_score`.
    """
    return ((latent - latent_of_reconstruction).flatten(1) @ whitening).square().mean(1)


def whitening_matrix(moments: torch.Tensor, ridge: float = 0.01) -> torch.Tensor:
    """Return the matrix ``W`` for which the product ``x @ W`` has the identity as second moments.

    Its columns are the directions of ``moments``, so that the small ones are not rounding errors of the large ones.

    Args:
        moments: Second moments ``(Z, Z)`` of vectors ``x``, symmetric and positive semi-definite.
        ridge: Fraction of the mean variance that is added to every direction, which bounds the weight of directions
            that hardly vary among few images.
    """
    variances, directions = torch.linalg.eigh(moments)
    floor = ridge * variances.mean().clamp(min=torch.finfo(moments.dtype).eps)
    return directions / (variances.clamp(min=0) + floor).sqrt()

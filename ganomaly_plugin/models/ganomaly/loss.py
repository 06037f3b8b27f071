# SPDX-License-Identifier: Apache-2.0
"""The losses of GANomaly (Akcay et al., ACCV 2018, section 3.2).

Every function takes tensors with the batch in the first dimension and returns a scalar, the mean over all elements.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

AdversarialForm = Literal["feature_matching", "bce"]
ADVERSARIAL_FORMS: tuple[str, ...] = get_args(AdversarialForm)


def feature_matching_loss(real_features: torch.Tensor, fake_features: torch.Tensor) -> torch.Tensor:
    """Adversarial loss of the paper (eq. 1): mean squared distance of the discriminator's features.

    Args:
        real_features: Features of the images, ``(B, C, h, w)``.
        fake_features: Features of the reconstructions, same shape.
    """
    return F.mse_loss(fake_features, real_features)


def fooling_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Adversarial loss of the code of the paper's date: cross-entropy of calling the reconstructions real.

    Args:
        fake_logits: Discriminator logits of the reconstructions, ``(B,)``.
    """
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def reconstruction_loss(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Contextual loss of the paper (eq. 2): mean absolute difference of the pixels, both ``(B, C, H, W)``."""
    return F.l1_loss(reconstructions, images)


def latent_loss(latent: torch.Tensor, latent_of_reconstruction: torch.Tensor) -> torch.Tensor:
    """Encoder loss of the paper (eq. 3): mean squared distance of the two latent codes, both ``(B, Z, h, w)``."""
    return F.mse_loss(latent_of_reconstruction, latent)


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Half the sum of the cross-entropies of calling images real and reconstructions fake.

    Args:
        real_logits: Discriminator logits of the images, ``(B,)``.
        fake_logits: Discriminator logits of the reconstructions, ``(B,)``.
    """
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return (real + fake) / 2

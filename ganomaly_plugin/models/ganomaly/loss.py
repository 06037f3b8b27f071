# SPDX-License-Identifier: Apache-2.0
"""The losses of GANomaly (Akcay et al., ACCV 2018, section 3.2).

Every function takes tensors with the batch in the first dimension and returns a scalar, the mean over all elements.
"""

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)


def feature_matching_loss(real_features: torch.Tensor, fake_features: torch.Tensor) -> torch.Tensor:
    """Adversarial loss of the paper (eq. 1): mean squared distance of the discriminator's features ``(B, C, h, w)``."""
    return F.mse_loss(fake_features, real_features)


def reconstruction_loss(target: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Contextual loss of the paper (eq. 2): mean absolute difference of the elements, both ``(B, C, h, w)``."""
    return F.l1_loss(reconstruction, target)


def latent_loss(latent: torch.Tensor, latent_of_reconstruction: torch.Tensor) -> torch.Tensor:
    """Encoder loss of the paper (eq. 3): mean squared distance of the two latent codes, both ``(B, Z, h, w)``."""
    return F.mse_loss(latent_of_reconstruction, latent)


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Half the sum of the cross-entropies of calling targets real and reconstructions fake, from logits ``(B,)``."""
    # Half of gan_loss.discriminator_loss, but for the rounding, which published trainings depend on.
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return (real + fake) / 2

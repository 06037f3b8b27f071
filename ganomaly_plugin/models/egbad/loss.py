# SPDX-License-Identifier: Apache-2.0
"""The losses of a bidirectional GAN (Donahue et al., 2017), each the mean over a batch of logits ``(B,)``."""

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


def discriminator_loss(true_logits: torch.Tensor, generated_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropies of calling images with their encodings true and generated images with their codes false."""
    return F.softplus(-true_logits).mean() + F.softplus(generated_logits).mean()


def generator_loss(generated_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of calling generated images with their codes true."""
    return F.softplus(-generated_logits).mean()


def encoder_loss(true_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of calling images with their encodings false."""
    return F.softplus(true_logits).mean()

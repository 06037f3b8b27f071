# SPDX-License-Identifier: Apache-2.0
"""The losses of generative adversarial networks (Goodfellow et al., 2014)."""

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


def discriminator_loss(real_logits: torch.Tensor, generated_logits: torch.Tensor) -> torch.Tensor:
    """Sum of the mean cross-entropies of calling real images ``(B,)`` real and generated ones ``(B,)`` generated."""
    return F.softplus(-real_logits).mean() + F.softplus(generated_logits).mean()


def generator_loss(generated_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating cross-entropy of calling generated images ``(B,)`` real."""
    return F.softplus(-generated_logits).mean()

# SPDX-License-Identifier: Apache-2.0
"""The encoder's loss of a bidirectional GAN (Donahue et al., 2017)."""

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


def encoder_loss(true_logits: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of calling images with their encodings false, from logits ``(B,)``."""
    return F.softplus(true_logits).mean()

# SPDX-License-Identifier: Apache-2.0
"""Losses of a Wasserstein GAN with gradient penalty (Gulrajani et al., 2017)."""

from collections.abc import Callable

import torch


def critic_loss(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Mean critic score of generated images ``(B,)`` less that of real ones ``(B,)``."""
    return generated.mean() - real.mean()


def generator_loss(generated: torch.Tensor) -> torch.Tensor:
    """Negative mean critic score of generated images ``(B,)``."""
    return -generated.mean()


def gradient_penalty(critic: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Mean squared difference from 1 of the norms of the critic's gradients at ``images`` ``(B, C, H, W)``.

    It is differentiable in the critic's weights. The critic scores each image by itself, ``(B,)``.
    """
    images = images.detach().requires_grad_()
    (gradients,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return (gradients.flatten(1).norm(dim=1) - 1).square().mean()

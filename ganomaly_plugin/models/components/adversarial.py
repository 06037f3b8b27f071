# SPDX-License-Identifier: Apache-2.0
"""Several networks with a loss each, trained in one step from one graph."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.dcgan import initialise_weights

if TYPE_CHECKING:
    Mixin = LightningModule
else:
    Mixin = object

logger = logging.getLogger(__name__)

COLLAPSE_LOSS = 1e-5
"""Discriminator loss below which the discriminator is initialised anew."""


class RoutedGradients(Mixin):
    """Mixin that sends each network the gradient of its own loss alone, under Lightning's automatic optimisation.

    All gradients are taken from before any update, so that one Adam over all networks is one for each, and every
    trainer flag (precision, gradient accumulation and clipping, strategies) works as for a single loss. A subclass's
    ``training_step`` returns the losses as a vector in the order of :meth:`networks_in_step`, has ``lr`` and ``betas``,
    and its ``model`` an ``update_average``.
    """

    lr: float
    betas: tuple[float, float]
    model: Any

    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """Return all networks that the optimiser steps."""

    def networks_in_step(self) -> Sequence[nn.Module]:
        """Return the networks that this step trains, in the order of their losses: all, unless a subclass has phases.

        Adam passes over the others, since they have no gradients.
        """
        return self.networks()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one Adam over all networks."""
        parameters = [parameter for network in self.networks() for parameter in network.parameters()]
        # Elsewhere PyTorch's default is as fast, and fused steps exclude clipping under 16-bit mixed precision.
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=self.device.type == "cpu")

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Take each loss's gradient for its network, through the graph that all share.

        Args:
            loss: One loss a network, ``(N,)``.
            *args: Not used.
            **kwargs: Not used.
        """
        del args, kwargs
        networks = self.networks_in_step()
        for number, network in enumerate(networks):
            loss[number].backward(inputs=list(network.parameters()), retain_graph=number < len(networks) - 1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step all networks, then let the average of what infers follow."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_average()


class DiscriminatorRestart(Mixin):
    """Mixin that initialises the discriminator anew once it tells real from fake without effort.

    GANomaly's code does so, and its successor's. Weights and batch-norm parameters are drawn anew; Adam's moments and
    running statistics stay. The dictionary that a subclass's ``training_step`` returns has a ``discriminator_loss``.
    """

    discriminator: nn.Module
    looks_at_losses: Callable[[int], bool]

    def on_train_batch_end(self, outputs: dict[str, torch.Tensor], batch: ImageBatch, batch_idx: int) -> None:
        """Look at the discriminator's loss, and draw its weights anew where it has collapsed."""
        del batch
        if not self.looks_at_losses(batch_idx):
            return
        loss = self.trainer.strategy.reduce(outputs["discriminator_loss"], reduce_op="mean")
        if loss < COLLAPSE_LOSS:
            logger.info("Discriminator loss %.1e in epoch %d: weights drawn anew.", loss, self.current_epoch)
            # The same draw on every process, and no change of the random numbers that follow.
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(self.global_step)
                initialise_weights(self.discriminator)


def discriminator_loss(real_logits: torch.Tensor, generated_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropies of calling what is real ``(B,)`` true and what is generated ``(B,)`` false, each a mean."""
    return F.softplus(-real_logits).mean() + F.softplus(generated_logits).mean()


def generator_loss(generated_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of calling what is generated ``(B,)`` true, which does not saturate (Goodfellow et al., 2014)."""
    return F.softplus(-generated_logits).mean()

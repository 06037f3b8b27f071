# SPDX-License-Identifier: Apache-2.0
"""Several networks with a loss each, trained in one step from one graph."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ganomaly_plugin.models.components.dcgan import initialise_weights

logger = logging.getLogger(__name__)

COLLAPSE_LOSS = 1e-5
"""Discriminator loss below which the discriminator is re-initialised (GANomaly's public code)."""
CHECK_INTERVAL = 10
"""Batches between two checks of the losses on an accelerator, where each check waits for the device."""


class JointTraining:
    """Sends each network the gradient of its own loss alone, under Lightning's automatic optimisation.

    All gradients are taken before any update, so that one Adam over all networks equals one for each, and every trainer
    flag (precision, gradient accumulation and clipping, strategies) works as for a single loss. Networks without a loss
    in a step get no gradients, and Adam skips them.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()

    def join(self, objectives: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the scalar losses of this step's networks, by name, as one vector ``(N,)`` for the trainer."""
        self._names = tuple(objectives)
        return torch.stack(list(objectives.values()))

    def backward(self, losses: torch.Tensor, networks: nn.ModuleDict) -> None:
        """Take each network's gradient, through the graph that all share.

        Args:
            losses: What :meth:`join` returned, perhaps scaled by the trainer, ``(N,)``.
            networks: All networks by name.
        """
        for number, name in enumerate(self._names):
            parameters = list(networks[name].parameters())
            losses[number].backward(inputs=parameters, retain_graph=number < len(self._names) - 1)


class ReinitialiseCollapsed(Callback):
    """Re-initialises the discriminator once it tells real from reconstructed images almost without error.

    As in the public code of GANomaly and Skip-GANomaly: weights and batch-norm parameters are drawn again; Adam's
    moments and running statistics stay. The model has a network ``discriminator`` and a loss ``loss_discriminator``.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Check the discriminator's loss."""
        del batch
        if not losses_are_checked(pl_module.device, batch_idx):
            return
        loss = trainer.strategy.reduce(outputs["loss_discriminator"], reduce_op="mean")
        if loss < COLLAPSE_LOSS:
            logger.info("Discriminator loss %.1e in epoch %d: re-initialised.", loss, trainer.current_epoch)
            model: Any = pl_module.model
            # The same weights on every process, and no change of the random numbers that follow.
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(trainer.global_step)
                initialise_weights(model.networks["discriminator"])


def weighted_sum(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Return the sum of the scalar losses that have a weight, each times its weight."""
    first, *others = (weight * losses[name] for name, weight in weights.items())
    return sum(others, start=first)


def losses_are_checked(device: torch.device, batch_idx: int) -> bool:
    """Return whether the losses of this batch are checked, which waits for the device."""
    return device.type == "cpu" or batch_idx % CHECK_INTERVAL == 0

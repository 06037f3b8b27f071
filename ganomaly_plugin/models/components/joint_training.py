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
        self._joined: torch.Tensor | None = None

    def join(self, objectives: Mapping[str, torch.Tensor], networks: nn.ModuleDict) -> torch.Tensor:
        """Return the sum of the scalar losses of this step's networks, for the trainer.

        Args:
            objectives: The losses by the names of their networks.
            networks: All networks by name.
        """
        self._names = tuple(objectives)
        values = list(objectives.values())
        if torch.distributed.is_initialized():  # Then every process waits for a gradient of each parameter.
            idle = (network for name, network in networks.items() if name not in objectives)
            values += [0 * torch.stack([each.sum() for each in network.parameters()]).sum() for network in idle]
        self._joined = torch.stack(values)
        return self._joined.sum()

    def backward(self, loss: torch.Tensor, networks: nn.ModuleDict) -> None:
        """Take each network's gradient, through the graph that all share.

        Args:
            loss: What :meth:`join` returned, perhaps scaled by the trainer.
            networks: All networks by name.
        """
        joined, self._joined = self._joined, None  # It holds the graph.
        assert joined is not None  # noqa: S101  (a loss has been joined)
        (scales,) = torch.autograd.grad(loss, joined, retain_graph=True)
        idle = [name for name in networks if name not in self._names]
        for number, name in enumerate([*self._names, *idle][: len(joined)]):
            joined[number].backward(
                scales[number], inputs=list(networks[name].parameters()), retain_graph=number < len(joined) - 1
            )
        for name in idle:
            networks[name].zero_grad()


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

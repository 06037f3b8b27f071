# SPDX-License-Identifier: Apache-2.0
"""Several networks with a loss each, trained in one step from one graph."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

if TYPE_CHECKING:
    Mixin = LightningModule
else:
    Mixin = object


class RoutedGradients(Mixin):
    """Mixin that sends each network the gradient of its own loss alone, under Lightning's automatic optimisation.

    All gradients are taken from before any update, so that one Adam over all networks is one for each, and every
    trainer flag (precision, gradient accumulation and clipping, strategies) works as for a single loss. A subclass's
    ``training_step`` returns the losses as a vector in the order of :meth:`networks`, has ``lr`` and ``betas``, and
    its ``model`` an ``update_average``.
    """

    lr: float
    betas: tuple[float, float]
    model: Any

    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """Return the networks in the order of their losses."""

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
        networks = self.networks()
        for number, network in enumerate(networks):
            loss[number].backward(inputs=list(network.parameters()), retain_graph=number < len(networks) - 1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step all networks, then let the average of what infers follow."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_average()


def discriminator_loss(real_logits: torch.Tensor, generated_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropies of calling what is real ``(B,)`` true and what is generated ``(B,)`` false, each a mean."""
    return F.softplus(-real_logits).mean() + F.softplus(generated_logits).mean()


def generator_loss(generated_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of calling what is generated ``(B,)`` true, which does not saturate (Goodfellow et al., 2014)."""
    return F.softplus(-generated_logits).mean()

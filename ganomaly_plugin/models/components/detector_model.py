# SPDX-License-Identifier: Apache-2.0
"""What the torch models of the package share: a space, networks, and a score."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, cast

import torch
from torch import nn

from ganomaly_plugin.models.components.averaging import power_average
from ganomaly_plugin.models.components.space import Space


class Output(NamedTuple):
    """Outputs of a detector for a batch, from one pass.

    Attributes:
        pred_score: Non-negative anomaly scores ``(B,)``, unbounded.
        anomaly_map: Non-negative anomaly maps ``(B, 1, H, W)``.
        reconstruction: Reconstructions in the detector's space, ``(B, C, h, w)``.
    """

    pred_score: torch.Tensor
    anomaly_map: torch.Tensor
    reconstruction: torch.Tensor


class DetectorModel(nn.Module, ABC):
    """Base of the torch models.

    An image's score depends on that image alone. Batches are scored as batches, whose kernels round differently with
    the number of images: scores agree within 1e-5 relatively whatever the batch, and to the bit for the same batch.
    AnoGAN, whose search of hundreds of steps amplifies the rounding, agrees within 1e-3.

    Args:
        space: What the networks reconstruct.
        networks: Networks to train, by name, with initial weights. Checkpoints keep Adam's state in their order.
        inference: Names of the networks that scoring needs, all by default.
        average: Whether to score with an exponential moving average (EMA) of these networks' weights.

    Attributes:
        average: The averaged networks, ``None`` without averaging.
    """

    def __init__(
        self,
        space: Space,
        networks: nn.ModuleDict,
        inference: Sequence[str] | None = None,
        average: bool = True,
    ) -> None:
        super().__init__()
        self.space = space
        self.networks = networks
        self._inference = tuple(inference or networks)
        # A quarter faster than the default layout on CPUs, and what tensor cores want.
        self.networks.to(memory_format=torch.channels_last)
        self.average = power_average(self._select(self.networks)) if average else None

    @property
    def inference_networks(self) -> nn.ModuleDict:
        """The networks that score: averaged, if there is an average."""
        return self.networks if self.average is None else cast("nn.ModuleDict", self.average.module)

    def update_average(self) -> None:
        """Let the average follow the networks; call after each optimiser step."""
        if self.average is not None:
            self.average.update_parameters(self._select(self.networks))

    def for_inference(self) -> "DetectorModel":
        """Return a model that shares this one's space and inference networks, and has nothing else."""
        model = copy(self)
        model._modules = dict(self._modules)
        model.networks, model.average = self._select(self.inference_networks), None
        return model

    def _select(self, networks: nn.ModuleDict) -> nn.ModuleDict:
        return nn.ModuleDict({name: networks[name] for name in self._inference})

    def forward(self, images: torch.Tensor) -> Output:
        """Score images.

        Args:
            images: Pre-processed images ``(B, 3, H, W)``, in [-1, 1] for pixels.

        Raises:
            ValueError: If the images have another size than the model.
        """
        return self.score(self.space(images))

    @abstractmethod
    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar losses of a training step by name, for targets ``(B, C, h, w)`` of the space."""

    @abstractmethod
    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` of the space by :attr:`inference_networks`."""

# SPDX-License-Identifier: Apache-2.0
"""What the detectors share that infer with all networks of a GAN."""

from typing import Generic, TypeVar, cast

import torch
from torch import nn

from ganomaly_plugin.models.components.averaging import power_average
from ganomaly_plugin.models.components.detector_model import DetectorModel

Networks = TypeVar("Networks", bound=nn.Module)


class GANModel(DetectorModel, Generic[Networks]):
    """Base of detectors that infer with a running average of a GAN's networks.

    A subclass calls :meth:`adopt` at the end of its construction.

    Args:
        pyramid: Shape of the networks.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Attributes:
        networks: The networks in training.
        average: Their running average.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def adopt(self, networks: Networks) -> None:
        """Take the networks in, and begin their average."""
        self.networks = networks
        self.to(memory_format=torch.channels_last)
        self.average = power_average(self.networks)

    @property
    def averaged(self) -> Networks:
        """The networks that score and rebuild."""
        return cast("Networks", self.average.module)

    def update_average(self) -> None:
        """Let the average follow the networks; call after each optimiser step."""
        self.average.update_parameters(self.networks)

# SPDX-License-Identifier: Apache-2.0
"""A plain convolutional autoencoder, in plain PyTorch."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.space import Space


class AutoencoderModel(DetectorModel):
    """Encoder and decoder of DCGAN blocks; the score is the mean squared reconstruction error.

    Args:
        space: What is reconstructed.
        pyramid: Shape of the networks.
    """

    def __init__(self, space: Space, pyramid: Pyramid) -> None:
        autoencoder = nn.Sequential(Encoder(pyramid), Decoder(pyramid))
        initialise_weights(autoencoder)
        super().__init__(space, nn.ModuleDict({"autoencoder": autoencoder}), average=False)

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mean squared error of targets ``(B, C, h, w)``."""
        return {"loss_reconstruction": F.mse_loss(self.networks["autoencoder"](target), target)}

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` by their squared error, in the square of the space's unit."""
        reconstruction = self.inference_networks["autoencoder"](target)
        error = self.space.error(target, reconstruction).square()
        return Output(error.flatten(1).mean(1), self.space.to_map(error), reconstruction)

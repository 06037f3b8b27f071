# SPDX-License-Identifier: Apache-2.0
"""A plain convolutional autoencoder, in plain PyTorch."""

import torch
from anomalib.data import InferenceBatch

from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel


class AutoencoderModel(DetectorModel):
    """Encoder and decoder of DCGAN blocks; an image is anomalous by how badly it is rebuilt.

    Args:
        pyramid: Shape of the networks.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, map_sigma: float) -> None:
        super().__init__(pyramid, map_sigma)
        self.encoder = Encoder(pyramid)
        self.decoder = Decoder(pyramid)
        initialise_weights(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | InferenceBatch:
        """Rebuild images in training, score them in evaluation.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            In training the images as the encoder sees them and their reconstructions; otherwise ``pred_score``
            ``(B,)``, the mean squared error as a share of the full range, and ``anomaly_map`` ``(B, 1, H, W)``, both in
            [0, 1].
        """
        if self.training:
            images = self.to_input(images)
            return images, self.rebuild(images)
        return self.predict(images)

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images ``(B, C, H, W)``."""
        reconstructions: torch.Tensor = self.decoder(self.encoder(images))
        return reconstructions

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` by their squared reconstruction error."""
        error = ((images - self.rebuild(images)) / 2).square().mean(1, keepdim=True)
        return InferenceBatch(pred_score=error.flatten(1).mean(1), anomaly_map=self.smooth(error))

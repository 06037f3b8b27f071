# SPDX-License-Identifier: Apache-2.0
"""A plain convolutional autoencoder, in plain PyTorch."""

import torch
from anomalib.data import InferenceBatch

from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, check_at_least


class AutoencoderModel(DetectorModel):
    """Encoder and decoder of DCGAN blocks; an image is anomalous by how badly it is rebuilt.

    Args:
        image_size: Height and width of the images in pixels, each at least 28.
        input_channels: 3 for colour, 1 for grey; colour images are turned grey inside the model.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any layer, ``None`` for unbounded doubling.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int = 3,
        n_features: int = 32,
        latent_vec_size: int = 16,
        max_features: int | None = 512,
        map_sigma: float = 2.0,
    ) -> None:
        super().__init__(image_size, input_channels, map_sigma)
        check_at_least(1, n_features=n_features, latent_vec_size=latent_vec_size)
        shape = (image_size, input_channels, n_features, latent_vec_size)
        self.encoder = Encoder(*shape, max_features=max_features)
        self.decoder = Decoder(*shape, max_features=max_features)
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
        """Return the reconstructions of images ``(B, input_channels, H, W)``."""
        reconstructions: torch.Tensor = self.decoder(self.encoder(images))
        return reconstructions

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, input_channels, H, W)`` by their squared reconstruction error."""
        error = ((images - self.rebuild(images)) / 2).square().mean(1, keepdim=True)
        return InferenceBatch(pred_score=error.flatten(1).mean(1), anomaly_map=self.smooth(error))

# SPDX-License-Identifier: Apache-2.0
"""The variational autoencoder as an anomalib model."""

from typing import Any, ClassVar

import torch

from ganomaly_plugin.models.components.detector_module import DetectorModule

from .torch_model import VAEModel


class VAE(DetectorModule):
    """Variational autoencoder that scores by reconstruction probability (An and Cho, 2015).

    Encoder and decoder give a mean and a variance each; the score is how improbable the decoder finds the image, on
    average over samples of its code. Convolutional here, where the paper's networks are dense. Logged per epoch:
    ``loss_reconstruction`` and ``loss_divergence`` in nats a pixel in training, ``val_score`` and ``image_AUROC`` in
    validation.

    Args:
        n_samples: Samples of the code for a score.
        minimum_std: Floor of the pixels' standard deviations in a range of [-1, 1].
        latent_vec_size: Length of the latent code.
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.
    """

    architecture = (*DetectorModule.architecture, "n_samples")
    renamed_weights: ClassVar = DetectorModule.renamed_weights | {
        "model.encoder.": "model.networks.autoencoder.encoder.",
        "model.decoder.": "model.networks.autoencoder.decoder.",
    }

    def __init__(
        self, *, n_samples: int = 10, minimum_std: float = 0.1, latent_vec_size: int = 16, **kwargs: Any
    ) -> None:
        super().__init__(latent_vec_size=latent_vec_size, **kwargs)
        space = self.build_space()
        self.model = VAEModel(space, self.build_pyramid(space), n_samples, minimum_std)

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise the negative evidence lower bound."""
        return {"autoencoder": losses["loss_reconstruction"] + losses["loss_divergence"]}

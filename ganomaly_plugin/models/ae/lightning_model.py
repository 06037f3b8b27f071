# SPDX-License-Identifier: Apache-2.0
"""The plain autoencoder as an anomalib model."""

from typing import Any, ClassVar

import torch

from ganomaly_plugin.models.components.detector_module import DetectorModule

from .torch_model import AutoencoderModel


class Autoencoder(DetectorModule):
    """Plain convolutional autoencoder, what the GANomaly paper's "autoencoder-based" rivals have in common.

    Trained on the mean squared error of normal images; the score is the same error. Logged per epoch:
    ``loss_reconstruction`` in training, ``val_score`` and ``image_AUROC`` in validation.

    Args:
        latent_vec_size: Length of the latent code. The shorter, the less it reconstructs of what it has not learnt.
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.
    """

    renamed_weights: ClassVar = DetectorModule.renamed_weights | {
        "model.encoder.": "model.networks.autoencoder.0.",
        "model.decoder.": "model.networks.autoencoder.1.",
    }

    def __init__(self, *, latent_vec_size: int = 16, **kwargs: Any) -> None:
        super().__init__(latent_vec_size=latent_vec_size, **kwargs)
        space = self.build_space()
        self.model = AutoencoderModel(space, self.build_pyramid(space))

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise the mean squared error."""
        return {"autoencoder": losses["loss_reconstruction"]}

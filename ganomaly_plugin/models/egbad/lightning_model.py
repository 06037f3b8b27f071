# SPDX-License-Identifier: Apache-2.0
"""EGBAD as an anomalib model."""

from typing import Any

import torch

from ganomaly_plugin.models.components.detector_module import DetectorModule

from .torch_model import EGBADModel, Score


class EGBAD(DetectorModule):
    """Efficient GAN-based anomaly detection (Zenati et al., 2018): a bidirectional GAN.

    A generator maps codes to images, an encoder images to codes, and one discriminator sees pairs of both. The score
    of an image is its reconstruction error and the discriminator's output for its pair; no search is needed, as it is
    in AnoGAN. DCGAN blocks replace the authors' networks for 28 pixels, so that any size works. The learning rate suits
    trainings of minutes; the authors take 1e-5 and 100 epochs.

    Logged per epoch: ``loss_discriminator``, ``loss_generator`` and ``loss_encoder`` in training, ``val_score`` and
    ``image_AUROC`` in validation.

    Args:
        latent_vec_size: Length of the latent code.
        beta1: Adam's decay rate of the first moment.
        score: ``feature_matching`` (the authors' advice) or ``cross_entropy``.
        weight: Fraction of the discriminator's part in the score, in [0, 1].
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.
    """

    def __init__(
        self,
        *,
        latent_vec_size: int = 200,
        beta1: float = 0.5,
        score: Score = "feature_matching",
        weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_vec_size=latent_vec_size, beta1=beta1, **kwargs)
        space = self.build_space()
        self.model = EGBADModel(space, self.build_pyramid(space), score, weight)

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise each network's own loss."""
        return {name: losses[f"loss_{name}"] for name in ("discriminator", "generator", "encoder")}

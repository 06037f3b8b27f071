# SPDX-License-Identifier: Apache-2.0
"""Skip-GANomaly as an anomalib model."""

from typing import Any

import torch

from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.detector_module import DetectorModule
from ganomaly_plugin.models.components.joint_training import ReinitialiseCollapsed, weighted_sum

from .torch_model import SkipGANomalyModel

WIDENING = 8
"""Widest layer of either network, as a multiple of the narrowest (pix2pix, Isola et al., 2017)."""


class SkipGANomaly(DetectorModule):
    """Skip-GANomaly (Akcay et al., 2019): GANomaly with a U-Net, and a discriminator's features as the latent code.

    Skip connections keep details that GANomaly loses, so that it reconstructs larger and more detailed images;
    anomalies can pass through them as well. The discriminator learns from its own loss alone, where the authors' code
    adds the generator's feature term to it.

    Logged per epoch: ``loss_adversarial``, ``loss_reconstruction``, ``loss_latent`` and ``loss_discriminator`` in
    training, ``val_score`` and ``image_AUROC`` in validation.

    Args:
        latent_vec_size: Length of the discriminator's vector of features.
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        max_features: Upper bound on the channels of any convolution, ``None`` for eight times ``n_features``.
        wadv: Weight of the adversarial loss.
        wcon: Weight of the reconstruction loss: 40 in the paper, 50 in its code.
        wlat: Weight of the latent loss.
        weight: Fraction of the discriminator's features in the score, in [0, 1].
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.
    """

    training_callbacks = (ReinitialiseCollapsed,)

    def __init__(
        self,
        *,
        latent_vec_size: int = 100,
        lr: float = 0.0002,
        beta1: float = 0.5,
        max_features: int | None = None,
        wadv: float = 1,
        wcon: float = 50,
        wlat: float = 1,
        weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_vec_size=latent_vec_size, lr=lr, beta1=beta1, max_features=max_features, **kwargs)
        check_at_least(0, wadv=wadv, wcon=wcon, wlat=wlat)
        space = self.build_space()
        widest = max_features or WIDENING * self.hparams["n_features"]
        self.model = SkipGANomalyModel(space, self.build_pyramid(space, max_features=widest), weight)
        self.loss_weights = {"loss_adversarial": wadv, "loss_reconstruction": wcon, "loss_latent": wlat}

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise the weighted sum of the paper (eq. 5) in the generator, and the discriminator's own loss."""
        generator_loss = weighted_sum(losses, self.loss_weights)
        return {"generator": generator_loss, "discriminator": losses["loss_discriminator"]}

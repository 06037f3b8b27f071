# SPDX-License-Identifier: Apache-2.0
"""Variants of GANomaly that are no options of the model, for the ablation of ``configs/compare/ablation.yaml``."""

from typing import Any

import torch
from anomalib.data import ImageBatch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.lr_scheduler import LinearLR
from torchvision.transforms.v2 import RandomAffine

from ganomaly_plugin import GANomaly
from ganomaly_plugin.models.components.joint_training import ReinitialiseCollapsed


class DecayedLearningRate(GANomaly):
    """GANomaly whose learning rate falls linearly to zero at the end of the training."""

    def configure_optimizers(self) -> Any:
        """Return Adam and the schedule of its learning rate, which changes after every step."""
        optimizer = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class SpectralNorm(GANomaly):
    """GANomaly whose discriminator's convolutions have a spectral norm of one (Miyato et al., ICLR 2018)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for module in list(self.model.networks["discriminator"].modules()):
            if isinstance(module, nn.Conv2d):
                spectral_norm(module)


class NoReinitialisation(GANomaly):
    """GANomaly whose discriminator is never re-initialised."""

    training_callbacks = tuple(each for each in GANomaly.training_callbacks if each is not ReinitialiseCollapsed)


class ShiftedImages(GANomaly):
    """GANomaly that trains on images moved by up to a tenth of their side, which leaves a normal image normal."""

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Move each image on its own; what enters from outside is black."""
        shift = RandomAffine(degrees=0, translate=(0.1, 0.1), fill=-1)
        return super().losses(torch.stack([shift(image) for image in images]))


class CombinedScore(GANomaly):
    """GANomaly scored by the errors of code, pixels and discriminator features, each in units of its training loss."""

    def on_train_epoch_end(self) -> None:
        """Keep the units: the means of the losses over the images of the epoch, all normal."""
        super().on_train_epoch_end()
        names = ("loss_latent", "loss_reconstruction", "loss_adversarial")
        self.units = [self.trainer.callback_metrics[name] for name in names]

    def test_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:
        """Score one test batch."""
        images: Any = batch.image
        target = self.model.space(images)
        reconstruction, latent, latent_of_reconstruction = self.model.inference_networks["generator"](target)
        _, real = self.model.networks["discriminator"](target)
        _, fake = self.model.networks["discriminator"](reconstruction)
        errors = ((latent - latent_of_reconstruction).square(), (target - reconstruction).abs(), (real - fake).square())
        parts = [error.flatten(1).mean(1) / unit for error, unit in zip(errors, self.units, strict=True)]
        return super().test_step(batch, batch_idx).update(pred_score=torch.stack(parts).sum(0))

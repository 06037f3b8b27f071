# SPDX-License-Identifier: Apache-2.0
"""Ways to change GANomaly's training that are not options of the model, for the ablation of the accuracy benchmark."""

from typing import Any

import torch
from anomalib.data import ImageBatch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.transforms.v2 import RandomAffine

from ganomaly_plugin import GANomaly


class DecayedLearningRate(GANomaly):
    """GANomaly whose learning rate falls linearly, to nothing at the end."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the rate of this step."""
        del batch, batch_idx
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (1 - self.global_step / self.trainer.estimated_stepping_batches)


class SpectralNorm(GANomaly):
    """GANomaly whose discriminator's convolutions have a spectral norm of one (Miyato et al., ICLR 2018)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for module in list(self.discriminator.modules()):
            if isinstance(module, nn.Conv2d):
                spectral_norm(module)


class NoRestart(GANomaly):
    """GANomaly whose discriminator is never drawn anew."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Leave it as it is."""


class LittleShifts(GANomaly):
    """GANomaly that trains on images moved by up to a tenth of their side, which leaves a normal image normal."""

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Move each image by itself; what comes in from outside is black."""
        shift = RandomAffine(degrees=0, translate=(0.1, 0.1), fill=-1)
        images: Any = batch.image
        batch.image = torch.stack([shift(image) for image in images])
        return super().training_step(batch, batch_idx)


class CombinedScore(GANomaly):
    """GANomaly scored by the errors of code, pixels and discriminator features, each in units of its training loss."""

    def combined_score(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores ``(B,)`` of images ``(B, C, H, W)``."""
        output = self.model.inference_generator(images)
        (_, real), (_, rebuilt) = (self.discriminator(batch) for batch in (images, output.reconstructions))
        errors = {
            "loss_latent": (output.latent - output.latent_of_reconstruction).square(),
            "loss_reconstruction": (images - output.reconstructions).abs(),
            "loss_adversarial": (real - rebuilt).square(),
        }
        units = self.trainer.callback_metrics  # Means over the images of the latest epoch, all normal.
        return torch.stack([error.flatten(1).mean(1) / units[loss] for loss, error in errors.items()]).sum(0)

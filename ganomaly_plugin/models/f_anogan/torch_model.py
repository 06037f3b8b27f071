# SPDX-License-Identifier: Apache-2.0
"""The networks of f-AnoGAN (Schlegl et al., 2019), in plain PyTorch."""

from functools import partial
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import nn

from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.dcgan import Decoder, Discriminator, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.gan_model import GANModel
from ganomaly_plugin.models.components.scores import reconstruction_error


class Verdicts(NamedTuple):
    """The critic's opinions ``(B,)`` in training, and between which images to take its gradients."""

    real: torch.Tensor
    generated: torch.Tensor
    between: torch.Tensor


class EncodedGAN(nn.Module):
    """Generator, critic, and the encoder that inverts the generator.

    Args:
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.generator = Decoder(pyramid)
        # Batch statistics would make an image's gradient depend on its neighbours, which the penalty does not know.
        self.critic = Discriminator(pyramid, normalisation=partial(nn.GroupNorm, 1))
        self.encoder = nn.Sequential(Encoder(pyramid), nn.Tanh())
        initialise_weights(self)

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the generator makes of the codes of images ``(B, C, H, W)``."""
        reconstructions: torch.Tensor = self.generator(self.encoder(images))
        return reconstructions


class FAnoGANModel(GANModel[EncodedGAN]):
    """A Wasserstein GAN and the encoder that is trained to invert it, with anomaly score and map.

    Training has two phases: :meth:`judge` serves the GAN's; after :meth:`begin_encoding`, generator and critic stay as
    they are, and :meth:`residual` is what the encoder minimises. The score is the same residual.

    Args:
        pyramid: Shape of the networks.
        kappa: Weight of the critic's features in residual and score.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, kappa: float, map_sigma: float) -> None:
        super().__init__(pyramid, map_sigma)
        check_at_least(0, kappa=kappa)
        self.kappa = kappa
        self.adopt(EncodedGAN(pyramid))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel."""
        return self.predict(images)

    def judge(self, images: torch.Tensor) -> Verdicts:
        """Judge images ``(B, 3, H, W)`` in [-1, 1] and as many generated ones."""
        images = self.to_input(images)
        latent = torch.randn(len(images), self.pyramid.latent_vec_size, 1, 1, device=images.device)
        generated = self.networks.generator(latent)
        share = torch.rand(len(images), 1, 1, 1, device=images.device)
        real_verdicts, _ = self.networks.critic(images)
        generated_verdicts, _ = self.networks.critic(generated)
        return Verdicts(real_verdicts, generated_verdicts, images + share * (generated - images))

    def begin_encoding(self) -> None:
        """Settle generator and critic at their averages, and let the encoder's average begin anew."""
        self.networks.load_state_dict(self.averaged.state_dict())
        self.average.n_averaged.zero_()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the :meth:`residual` of images ``(B, 3, H, W)`` in [-1, 1] for the encoder in training."""
        self.networks.generator.eval()
        images = self.to_input(images)
        return self.residual(images, self.networks.rebuild(images))

    def residual(self, images: torch.Tensor, rebuilt: torch.Tensor) -> torch.Tensor:
        """Return by how much images differ from their reconstructions, both ``(B, C, H, W)``, as ``(B,)``.

        The mean squared difference of pixels plus ``kappa`` times that of the averaged critic's features (paper, eq. 5
        and 6).
        """
        (_, features), (_, rebuilt_features) = self.averaged.critic(images), self.averaged.critic(rebuilt)
        of_pixels = (images - rebuilt).square().flatten(1).mean(1)
        return of_pixels + self.kappa * (features - rebuilt_features).square().flatten(1).mean(1)

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images ``(B, C, H, W)``."""
        return self.averaged.rebuild(images)

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, C, H, W)`` by the averaged networks."""
        rebuilt = self.rebuild(images)
        error = reconstruction_error(images, rebuilt)
        return InferenceBatch(pred_score=self.residual(images, rebuilt), anomaly_map=self.smooth(error))

# SPDX-License-Identifier: Apache-2.0
"""The networks of f-AnoGAN (Schlegl et al., 2019), in plain PyTorch."""

from functools import partial
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import nn

from ganomaly_plugin.models.components.dcgan import Decoder, Discriminator, Encoder, initialise_weights
from ganomaly_plugin.models.components.detector_model import check_at_least
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
        image_size: Height and width of the images in pixels.
        input_channels: Channels of the images.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any layer, ``None`` for unbounded doubling.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int,
        n_features: int,
        latent_vec_size: int,
        max_features: int | None = None,
    ) -> None:
        super().__init__()
        shape = (image_size, input_channels, n_features, latent_vec_size)
        self.generator = Decoder(*shape, max_features=max_features)
        # Batch statistics would make an image's gradient depend on its neighbours, which the penalty does not know.
        self.critic = Discriminator(
            image_size, input_channels, n_features, max_features=max_features, normalisation=partial(nn.GroupNorm, 1)
        )
        self.encoder = nn.Sequential(Encoder(*shape, max_features=max_features), nn.Tanh())
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
        image_size: Height and width of the images in pixels, each at least 28.
        input_channels: 3 for colour, 1 for grey; colour images are turned grey inside the model.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any layer, ``None`` for unbounded doubling.
        kappa: Weight of the critic's features in residual and score.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int = 3,
        n_features: int = 32,
        latent_vec_size: int = 128,
        max_features: int | None = 512,
        kappa: float = 1.0,
        map_sigma: float = 2.0,
    ) -> None:
        super().__init__(image_size, input_channels, map_sigma)
        check_at_least(1, n_features=n_features, latent_vec_size=latent_vec_size)
        check_at_least(0, kappa=kappa)
        self.kappa = kappa
        self.latent_vec_size = latent_vec_size
        self.adopt(EncodedGAN(image_size, input_channels, n_features, latent_vec_size, max_features))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel."""
        return self.predict(images)

    def judge(self, images: torch.Tensor) -> Verdicts:
        """Judge images ``(B, 3, H, W)`` in [-1, 1] and as many generated ones."""
        images = self.to_input(images)
        latent = torch.randn(len(images), self.latent_vec_size, 1, 1, device=images.device)
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
        """Return the reconstructions of images ``(B, input_channels, H, W)``."""
        return self.averaged.rebuild(images)

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Score images ``(B, input_channels, H, W)`` by the averaged networks."""
        rebuilt = self.rebuild(images)
        error = reconstruction_error(images, rebuilt)
        return InferenceBatch(pred_score=self.residual(images, rebuilt), anomaly_map=self.smooth(error))

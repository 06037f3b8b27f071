# SPDX-License-Identifier: Apache-2.0
"""The networks and the search of AnoGAN (Schlegl et al., 2017), in plain PyTorch."""

from collections.abc import Callable, Iterable
from itertools import chain

import torch
from anomalib.data import InferenceBatch
from torch import nn

from ganomaly_plugin.models.components.checks import check_at_least, check_share
from ganomaly_plugin.models.components.dcgan import Decoder, Discriminator, Pyramid, initialise_weights
from ganomaly_plugin.models.components.gan_model import GANModel
from ganomaly_plugin.models.components.scores import reconstruction_error

SEARCH_STEPS = 500
LEARNING_RATES = ((0.0, 0.01), (0.4, 0.001), (0.6, 0.0005))
"""Adam's learning rate from each share of the steps on, for ``SEARCH_STEPS`` of them, as in EGBAD's code of AnoGAN."""


class DCGAN(nn.Module):
    """Generator and discriminator.

    Args:
        pyramid: Shape of the networks.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.generator = Decoder(pyramid)
        self.discriminator = Discriminator(pyramid)
        initialise_weights(self)


class AnoGANModel(GANModel[DCGAN]):
    """A GAN of normal images, and the search for the code whose image is nearest to a given one.

    The search descends the score itself: ``(1 - weight)`` times the summed absolute difference of image and generated
    image plus ``weight`` times that of the discriminator's features (paper, eq. 5). All images of a batch are searched
    for at once; each starts from the same code and goes its own way, since Adam treats every number by itself. In a
    search of fewer steps each is longer, so that the code comes as far.

    Args:
        pyramid: Shape of the networks.
        steps: Steps of the search.
        weight: Share of the discriminator's features in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.

    Attributes:
        track: Wraps the steps of a search, to show how far it is.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, pyramid: Pyramid, steps: int, weight: float, map_sigma: float) -> None:
        super().__init__(pyramid, map_sigma)
        check_at_least(1, steps=steps)
        check_share(weight=weight)
        self.steps = steps
        self.weight = weight
        self.track: Callable[[range], Iterable[int]] = iter
        start = torch.randn(1, pyramid.latent_vec_size, 1, 1, generator=torch.Generator().manual_seed(0))
        self.register_buffer("start", start)
        self.start: torch.Tensor
        self._latest: tuple[tuple[object, ...], torch.Tensor, torch.Tensor] | None = None
        self.adopt(DCGAN(pyramid))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | InferenceBatch:
        """Judge images and generated ones in training, search for images in evaluation.

        Args:
            images: Shape ``(B, 3, H, W)`` in [-1, 1], or ``(B, 1, H, W)`` if the model has one channel.

        Returns:
            In training the discriminator's logits ``(B,)`` of the images and of as many generated ones; otherwise
            ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``.
        """
        if not self.training:
            return self.predict(images)
        images = self.to_input(images)
        latent = torch.randn(len(images), self.pyramid.latent_vec_size, 1, 1, device=images.device)
        real_logits, _ = self.networks.discriminator(images)
        generated_logits, _ = self.networks.discriminator(self.networks.generator(latent))
        return real_logits, generated_logits

    def predict(self, images: torch.Tensor) -> InferenceBatch:
        """Score a batch as a whole, since the search costs hundreds of passes."""
        return self.infer(self.to_input(images))

    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Return the generated images nearest to images ``(B, C, H, W)``."""
        nearest: torch.Tensor = self.averaged.generator(self.search(images))
        return nearest

    def infer(self, images: torch.Tensor) -> InferenceBatch:
        """Search, and score images ``(B, C, H, W)`` by what remains."""
        latent = self.search(images)
        with torch.no_grad():
            error = reconstruction_error(images, self.averaged.generator(latent))
            score = self.distance(images, self.features(images), latent)
            return InferenceBatch(pred_score=score, anomaly_map=self.smooth(error))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the averaged discriminator's features ``(B, F, h, w)`` of images ``(B, C, H, W)``."""
        features: torch.Tensor = self.averaged.discriminator(images)[1]
        return features

    def distance(self, images: torch.Tensor, features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Return the score ``(B,)`` of images with their :meth:`features` for codes ``(B, Z, 1, 1)``."""
        generated = self.averaged.generator(latent)
        residual = (images - generated).abs().flatten(1).sum(1)
        discrimination = (features - self.features(generated)).abs().flatten(1).sum(1)
        return (1 - self.weight) * residual + self.weight * discrimination

    def search(self, images: torch.Tensor) -> torch.Tensor:
        """Return the codes ``(B, Z, 1, 1)`` whose generated images are nearest to images ``(B, C, H, W)``.

        Gradients flow even where the caller has switched them off. The latest search is remembered, so that a picture
        of images that were just scored takes none of its own.
        """
        weights = chain(self.average.parameters(), self.average.buffers())
        state = (self.steps, images.device, *(tensor._version for tensor in weights))  # Each change counts it up.
        if self._latest is not None and self._latest[0] == state and torch.equal(self._latest[1], images):
            return self._latest[2]
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone()
            features = self.features(images)
            latent = self.start.repeat(len(images), 1, 1, 1).requires_grad_()
            optimiser = torch.optim.Adam([latent])
            for step in self.track(range(self.steps)):
                rates = [rate for share, rate in LEARNING_RATES if step >= share * self.steps]
                optimiser.param_groups[0]["lr"] = rates[-1] * SEARCH_STEPS / self.steps
                (latent.grad,) = torch.autograd.grad(self.distance(images, features, latent).sum(), latent)
                optimiser.step()
        codes = latent.detach()
        self._latest = (state, images, codes)
        return codes

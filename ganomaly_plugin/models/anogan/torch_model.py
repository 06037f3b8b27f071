# SPDX-License-Identifier: Apache-2.0
"""The networks and the search of AnoGAN (Schlegl et al., 2017), in plain PyTorch."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from ganomaly_plugin.models.components.checks import check_at_least, check_fraction
from ganomaly_plugin.models.components.dcgan import Decoder, Discriminator, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.gan_loss import discriminator_loss, generator_loss
from ganomaly_plugin.models.components.space import Space

SEARCH_STEPS = 500
LEARNING_RATES = ((0.0, 0.01), (0.4, 0.001), (0.6, 0.0005))
"""Adam's learning rate from each fraction of ``SEARCH_STEPS`` steps on, as in EGBAD's code of AnoGAN."""


class AnoGANModel(DetectorModel):
    """A GAN of normal images, and the search for the code whose generated target is nearest to a given one.

    The search minimises the score itself: ``(1 - weight)`` times the summed absolute difference of target and generated
    target plus ``weight`` times that of the discriminator's features (paper, eq. 5). All targets of a batch are
    searched for at once; each starts from the same code and follows its own gradients, since Adam treats every number
    by itself. In a search of fewer steps the learning rate is larger, so that the code comes as far.

    Args:
        space: What is generated.
        pyramid: Shape of the networks.
        steps: Steps of the search.
        weight: Fraction of the discriminator's features in the score, in [0, 1].

    Attributes:
        track: Wraps the steps of a search, to show its progress.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, space: Space, pyramid: Pyramid, steps: int, weight: float) -> None:
        check_at_least(1, steps=steps)
        check_fraction(weight=weight)
        generator, discriminator = Decoder(pyramid), Discriminator(pyramid)
        initialise_weights(nn.ModuleList([generator, discriminator]))
        super().__init__(space, nn.ModuleDict({"discriminator": discriminator, "generator": generator}))
        self.steps = steps
        self.weight = weight
        self.track: Callable[[range], Iterable[int]] = iter
        start = torch.randn(1, pyramid.latent_vec_size, 1, 1, generator=torch.Generator().manual_seed(0))
        self.register_buffer("start", start)
        self.start: torch.Tensor

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both networks' losses for targets ``(B, C, h, w)`` and as many generated ones."""
        latent = torch.randn(len(target), *self.start.shape[1:], device=target.device)
        real_logits, _ = self.networks["discriminator"](target)
        generated_logits, _ = self.networks["discriminator"](self.networks["generator"](latent))
        return {
            "loss_discriminator": discriminator_loss(real_logits, generated_logits),
            "loss_generator": generator_loss(generated_logits),
        }

    def score(self, target: torch.Tensor) -> Output:
        """Search, and score targets ``(B, C, h, w)`` by their residual after the search."""
        latent = self.search(target)
        with torch.no_grad():
            score, nearest = self.distance(target, self.features(target), latent)
            return Output(score, self.space.to_map(self.space.error(target, nearest)), nearest)

    def features(self, target: torch.Tensor) -> torch.Tensor:
        """Return the averaged discriminator's features ``(B, F, h, w)`` of targets ``(B, C, h, w)``."""
        features: torch.Tensor = self.inference_networks["discriminator"](target)[1]
        return features

    def distance(
        self, target: torch.Tensor, features: torch.Tensor, latent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores ``(B,)`` of targets with their :meth:`features` for codes ``(B, Z, 1, 1)``.

        The second value holds the generated targets ``(B, C, h, w)``.
        """
        generated = self.inference_networks["generator"](latent)
        residual = (target - generated).abs().flatten(1).sum(1)
        discrimination = (features - self.features(generated)).abs().flatten(1).sum(1)
        return (1 - self.weight) * residual + self.weight * discrimination, generated

    def search(self, target: torch.Tensor) -> torch.Tensor:
        """Return the codes ``(B, Z, 1, 1)`` whose generated targets are nearest to targets ``(B, C, h, w)``.

        Gradients flow even where the caller has switched them off.
        """
        with torch.inference_mode(False), torch.enable_grad():
            target = target.clone()
            features = self.features(target)
            latent = self.start.repeat(len(target), 1, 1, 1).requires_grad_()
            optimiser = torch.optim.Adam([latent])
            for step in self.track(range(self.steps)):
                rates = [rate for fraction, rate in LEARNING_RATES if step >= fraction * self.steps]
                optimiser.param_groups[0]["lr"] = rates[-1] * SEARCH_STEPS / self.steps
                score, _ = self.distance(target, features, latent)
                (latent.grad,) = torch.autograd.grad(score.sum(), latent)
                optimiser.step()
        return latent.detach()

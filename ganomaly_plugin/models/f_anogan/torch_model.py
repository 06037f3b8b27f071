# SPDX-License-Identifier: Apache-2.0
"""The networks of f-AnoGAN (Schlegl et al., 2019), in plain PyTorch."""

from functools import partial

import torch
from torch import nn

from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.dcgan import Decoder, Discriminator, Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.space import Space

from .loss import critic_loss, generator_loss, gradient_penalty


class FAnoGANModel(DetectorModel):
    """A Wasserstein GAN and the encoder that is trained to invert it, with anomaly score and map.

    Training has two phases: first :meth:`losses` of the GAN; after :meth:`begin_encoding`, generator and critic stay as
    they are, and the encoder minimises :meth:`residual`. The score is the same residual.

    Args:
        space: What is generated.
        pyramid: Shape of the networks.
        kappa: Weight of the critic's features in residual and score.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, space: Space, pyramid: Pyramid, kappa: float) -> None:
        check_at_least(0, kappa=kappa)
        generator = Decoder(pyramid)
        # Batch statistics would make an image's gradient depend on its neighbours, which the penalty ignores.
        critic = Discriminator(pyramid, normalisation=partial(nn.GroupNorm, 1))
        encoder = nn.Sequential(Encoder(pyramid), nn.Tanh())
        initialise_weights(nn.ModuleList([generator, critic, encoder]))
        super().__init__(space, nn.ModuleDict({"critic": critic, "generator": generator, "encoder": encoder}))
        self.latent_vec_size = pyramid.latent_vec_size
        self.kappa = kappa

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the losses of the first phase for targets ``(B, C, h, w)`` and as many generated ones."""
        critic = self.networks["critic"]
        latent = torch.randn(len(target), self.latent_vec_size, 1, 1, device=target.device)
        generated = self.networks["generator"](latent)
        fraction = torch.rand(len(target), 1, 1, 1, device=target.device)
        (real_scores, _), (generated_scores, _) = critic(target), critic(generated)
        between = target + fraction * (generated - target)
        return {
            "loss_critic": critic_loss(real_scores, generated_scores),
            "gradient_penalty": gradient_penalty(lambda inputs: critic(inputs)[0], between),
            "loss_generator": generator_loss(generated_scores),
        }

    def begin_encoding(self) -> None:
        """Set all networks to their averages, and restart the average."""
        assert self.average is not None  # noqa: S101  (the constructor makes one)
        self.networks.load_state_dict(self.inference_networks.state_dict())
        self.average.n_averaged.zero_()

    def encoder_losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mean residual of targets ``(B, C, h, w)``, which the encoder in training minimises."""
        generator = self.networks["generator"].eval()
        return {"loss_encoder": self.residual(target, generator(self.networks["encoder"](target))).mean()}

    def residual(self, target: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the difference of targets and reconstructions, both ``(B, C, h, w)``, as ``(B,)``.

        The mean squared difference of elements plus ``kappa`` times that of the averaged critic's features (paper,
        eq. 5 and 6).
        """
        critic = self.inference_networks["critic"]
        (_, features), (_, fake_features) = critic(target), critic(reconstruction)
        element_error = (target - reconstruction).square().flatten(1).mean(1)
        return element_error + self.kappa * (features - fake_features).square().flatten(1).mean(1)

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` by their residual."""
        networks = self.inference_networks
        reconstruction = networks["generator"](networks["encoder"](target))
        error_map = self.space.to_map(self.space.error(target, reconstruction))
        return Output(self.residual(target, reconstruction), error_map, reconstruction)

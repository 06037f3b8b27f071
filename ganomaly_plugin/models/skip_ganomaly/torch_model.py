# SPDX-License-Identifier: Apache-2.0
"""The networks of Skip-GANomaly (Akcay et al., IJCNN 2019), in plain PyTorch."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_fraction
from ganomaly_plugin.models.components.dcgan import Encoder, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.gan_loss import discriminator_loss, generator_loss
from ganomaly_plugin.models.components.space import Space


class UNet(nn.Module):
    """Encoder and decoder with a connection from each feature map to its mirror image.

    The input is halved until its shorter side is one. An odd side is floored on the way down, and restored by output
    padding on the way up.

    Args:
        pyramid: Shape of the network; the length of its code is not used.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        height, width = pyramid.size
        n_stages = min(height, width).bit_length() - 1
        sizes = [(height >> stage, width >> stage) for stage in range(n_stages + 1)]
        widths = [pyramid.channels, *(pyramid.width(stage) for stage in range(n_stages))]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for stage, ((outer, inner), (larger, smaller)) in enumerate(
            zip(pairwise(widths), pairwise(sizes), strict=True), start=1
        ):
            outermost, innermost = stage == 1, stage == n_stages
            self.down.append(
                nn.Sequential(
                    nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=False),
                    # A map of one element of one image has no batch statistics.
                    nn.Identity() if outermost or innermost else nn.BatchNorm2d(inner),
                    nn.LeakyReLU(0.2),
                )
            )
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    nn.ConvTranspose2d(
                        inner if innermost else 2 * inner,
                        outer,
                        4,
                        stride=2,
                        padding=1,
                        output_padding=(larger[0] - 2 * smaller[0], larger[1] - 2 * smaller[1]),
                        bias=outermost,
                    ),
                    pyramid.bound() if outermost else nn.BatchNorm2d(outer),
                )
            )

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        """Reconstruct targets ``(B, C, h, w)``."""
        features = [self.down[0](target)]
        for layer in self.down[1:]:
            features.append(layer(features[-1]))
        reconstruction = features.pop()
        for layer in reversed(self.up):
            reconstruction = layer(reconstruction)
            if features:
                reconstruction = torch.cat([features.pop(), reconstruction], 1)
        return reconstruction


class FeatureDiscriminator(nn.Module):
    """Tells targets from reconstructions by a vector of features.

    Args:
        pyramid: Shape of the network.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.features = Encoder(pyramid)
        # The code's 3x3 kernel on one padded element, without the weights that see padding alone.
        self.classifier = nn.Conv2d(pyramid.latent_vec_size, 1, 1, bias=False)

    def forward(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(B,)``, positive for real, and features ``(B, Z, 1, 1)`` of targets ``(B, C, h, w)``."""
        features: torch.Tensor = self.features(target)
        return self.classifier(features).flatten(), features


class SkipGANomalyModel(DetectorModel):
    """A U-Net and its discriminator, with anomaly score and map.

    The score is ``(1 - weight)`` times the mean squared difference of target and reconstruction plus ``weight`` times
    that of the discriminator's features (paper, eq. 6), so scoring needs the discriminator.

    Args:
        space: What is reconstructed.
        pyramid: Shape of the networks.
        weight: Fraction of the discriminator's features in the score, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(self, space: Space, pyramid: Pyramid, weight: float) -> None:
        check_fraction(weight=weight)
        networks = nn.ModuleDict({"generator": UNet(pyramid), "discriminator": FeatureDiscriminator(pyramid)})
        initialise_weights(networks)
        super().__init__(space, networks)
        self.weight = weight

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unweighted losses of targets ``(B, C, h, w)``: one generator pass, two discriminator passes."""
        reconstruction = self.networks["generator"](target)
        real_logits, real_features = self.networks["discriminator"](target)
        fake_logits, fake_features = self.networks["discriminator"](reconstruction)
        return {
            "loss_adversarial": generator_loss(fake_logits),
            "loss_reconstruction": F.l1_loss(reconstruction, target),
            "loss_latent": F.mse_loss(fake_features, real_features),
            "loss_discriminator": discriminator_loss(real_logits, fake_logits),
        }

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, C, h, w)`` by the errors of elements and features."""
        networks = self.inference_networks
        reconstruction = networks["generator"](target)
        (_, features), (_, fake_features) = networks["discriminator"](target), networks["discriminator"](reconstruction)
        element_error = (target - reconstruction).square().flatten(1).mean(1)
        feature_error = (features - fake_features).square().flatten(1).mean(1)
        score = (1 - self.weight) * element_error + self.weight * feature_error
        return Output(score, self.space.to_map(self.space.error(target, reconstruction)), reconstruction)

# SPDX-License-Identifier: Apache-2.0
"""A plain restatement of GANomaly's public code, as the yardstick of tests and benchmarks.

It follows the code of August 2019 and later in networks, losses and order of work: four discriminator passes a step, a
generator step whose backward pass also fills the discriminator's gradients, then a discriminator step from predictions
made before the generator moved. Nothing here is shared with the package, so that agreement between the two means
something.
"""

from math import log2

import torch
from torch import nn


def encoder(size: int, channels: int, width: int, outputs: int) -> list[nn.Module]:
    """Layers from a square image, whose side is a power of two, to ``outputs`` numbers."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for _ in range(int(log2(size)) - 3):
        layers += [
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width *= 2
    return [*layers, nn.Conv2d(width, outputs, 4, 1, 0, bias=False)]


def decoder(size: int, channels: int, width: int, inputs: int) -> list[nn.Module]:
    """Layers from ``inputs`` numbers to a square image."""
    width *= size // 8
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(inputs, width, 4, 1, 0, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    for _ in range(int(log2(size)) - 3):
        layers += [
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
        ]
        width //= 2
    return [*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]


def initialise(layer: nn.Module) -> None:
    """Draw a layer's weights as DCGAN does."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)


class OfficialGANomaly(nn.Module):
    """Networks, optimisers and one training step.

    Args:
        size: Side of the square images, a power of two from 32 up.
        channels: Channels of the images.
        width: Channels after the first convolution.
        latent: Length of the latent code.
    """

    def __init__(self, size: int, channels: int, width: int = 64, latent: int = 100) -> None:
        super().__init__()
        self.encoder1 = nn.Sequential(*encoder(size, channels, width, latent))
        self.decoder = nn.Sequential(*decoder(size, channels, width, latent))
        self.encoder2 = nn.Sequential(*encoder(size, channels, width, latent))
        *features, classifier = encoder(size, channels, width, 1)
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(classifier, nn.Sigmoid())
        self.apply(initialise)
        generator = [self.encoder1, self.decoder, self.encoder2]
        self.optimizer_g = self._adam(generator)
        self.optimizer_d = self._adam([self.features, self.classifier])

    @staticmethod
    def _adam(networks: list[nn.Sequential]) -> torch.optim.Adam:
        parameters = [parameter for network in networks for parameter in network.parameters()]
        return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))

    def step(self, images: torch.Tensor) -> None:
        """Train on one batch ``(B, C, H, W)``."""
        latent = self.encoder1(images)
        reconstructions = self.decoder(latent)
        latent_of_reconstruction = self.encoder2(reconstructions)
        real = self.classifier(self.features(images)).flatten()
        fake = self.classifier(self.features(reconstructions.detach())).flatten()

        self.optimizer_g.zero_grad()
        adversarial = (self.features(images) - self.features(reconstructions)).square().mean()
        contextual = (images - reconstructions).abs().mean()
        encoding = (latent - latent_of_reconstruction).square().mean()
        (adversarial + 50 * contextual + encoding).backward(retain_graph=True)
        self.optimizer_g.step()

        self.optimizer_d.zero_grad()
        bce = nn.functional.binary_cross_entropy
        loss_d = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
        loss_d.backward()
        self.optimizer_d.step()
        if loss_d.item() < 1e-5:
            self.features.apply(initialise)
            self.classifier.apply(initialise)

    @torch.no_grad()
    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Mean squared distance of the two codes ``(B,)``, in whichever mode the batch-norm layers are."""
        latent = self.encoder1(images)
        return (latent - self.encoder2(self.decoder(latent))).square().flatten(1).mean(1)

# SPDX-License-Identifier: Apache-2.0
"""DCGAN building blocks: the convolutional pyramids that the models share.

Every convolution is bias-free and halves or doubles its input with a 4x4 kernel, stride 2 and padding 1, as in Radford
et al., "Unsupervised Representation Learning with Deep Convolutional GANs", ICLR 2016, and in the GANomaly code.
Sizes need not be powers of two: an odd side is floored on the way down, and the decoder's output padding restores it on
the way up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_at_least

MINIMUM_SIZE = 8
"""Shorter side of an input below which it cannot be halved."""


@dataclass(frozen=True)
class Pyramid:
    """Shape of a model's networks: the sizes and widths of the feature maps between an input and its code.

    Attributes:
        size: Height and width of the input, each at least ``MINIMUM_SIZE``.
        channels: Channels of the input.
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any layer, ``None`` for the paper's unbounded doubling.
        extra_layers: Number of additional 3x3 convolutions next to the input.
        add_final_conv_layer: If ``False``, the latent code is the last feature map itself.
        bound: Last layer of a decoder, which brings its output into the input's range.

    Raises:
        ValueError: If a value is out of its range; the message names it, the rule and what works.

    Example:
        >>> pyramid = Pyramid((39, 28), channels=3, n_features=64, latent_vec_size=100)
        >>> pyramid.sizes
        [(39, 28), (19, 14), (9, 7)]
        >>> pyramid.widths
        [64, 128]
    """

    size: tuple[int, int]
    channels: int
    n_features: int
    latent_vec_size: int
    max_features: int | None = None
    extra_layers: int = 0
    add_final_conv_layer: bool = True
    bound: type[nn.Module] = nn.Identity

    def __post_init__(self) -> None:
        """Refuse what no network can be built for."""
        if min(self.size) < MINIMUM_SIZE:
            msg = f"The networks' input is {self.size}; each side must be at least {MINIMUM_SIZE}."
            raise ValueError(msg)
        check_at_least(1, n_features=self.n_features, latent_vec_size=self.latent_vec_size)
        check_at_least(0, extra_layers=self.extra_layers)
        if self.max_features is not None and self.max_features < self.n_features:
            rule = f"it must be None or at least n_features, which is {self.n_features}"
            msg = f"max_features is {self.max_features}; {rule}."
            raise ValueError(msg)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of the feature maps, the input's own first."""
        return halved_sizes(self.size)

    @property
    def widths(self) -> list[int]:
        """Channels of the feature maps after the input."""
        return [self.width(stage) for stage in range(len(self.sizes) - 1)]

    def width(self, stage: int) -> int:
        """Return the channels after ``stage`` further halvings: doubled at each, never above ``max_features``."""
        width = self.n_features * 2**stage
        return width if self.max_features is None else min(width, self.max_features)


def halved_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return a height and width, and what halving leaves of them, until the shorter side is below 8.

    That leaves 4x4 for every power of two.
    """
    sizes = [size]
    while min(sizes[-1]) >= MINIMUM_SIZE:
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))
    return sizes


class MapToVector(nn.Conv2d):
    """A convolution whose kernel covers the whole feature map, computed as the matrix product that it is.

    On a CPU that takes a tenth of the time of PyTorch's convolutions, forwards and backwards.
    """

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Turn feature maps ``(B, in_channels, h, w)`` of the kernel's size into ``(B, out_channels, 1, 1)``."""
        return F.linear(_channels_last_rows(feature_map), _channels_last_rows(self.weight))[..., None, None]


class VectorToMap(nn.ConvTranspose2d):
    """The transpose of :class:`MapToVector`, computed likewise."""

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        """Turn vectors ``(B, in_channels, 1, 1)`` into maps ``(B, out_channels, h, w)`` of the kernel's size."""
        rows = vector.flatten(1) @ _channels_last_rows(self.weight)
        return rows.unflatten(1, (*self.kernel_size, self.out_channels)).movedim(-1, 1)


def _channels_last_rows(maps: torch.Tensor) -> torch.Tensor:
    """Flatten ``(N, C, h, w)`` to ``(N, h * w * C)``, which copies nothing in the channels-last memory format."""
    return maps.movedim(1, -1).flatten(1)


class Encoder(nn.Module):
    """Convolutional pyramid from an input to a latent code.

    Args:
        pyramid: Shape of the network.
        normalisation: Builds what follows the inner convolutions from their number of channels.
    """

    def __init__(self, pyramid: Pyramid, normalisation: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        widths = pyramid.widths
        layers: list[nn.Module] = [
            nn.Conv2d(pyramid.channels, widths[0], 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in range(pyramid.extra_layers):
            layers += [
                nn.Conv2d(widths[0], widths[0], 3, padding=1, bias=False),
                normalisation(widths[0]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        for width_in, width_out in pairwise(widths):
            layers += [
                nn.Conv2d(width_in, width_out, 4, stride=2, padding=1, bias=False),
                normalisation(width_out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.to_latent: nn.Module = (
            MapToVector(widths[-1], pyramid.latent_vec_size, pyramid.sizes[-1], bias=False)
            if pyramid.add_final_conv_layer
            else nn.Identity()
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Encode inputs ``(B, C, H, W)``.

        Returns:
            Latent codes, ``(B, latent_vec_size, 1, 1)``, or the last feature map ``(B, F, h, w)`` if the encoder has
            no final convolution.
        """
        latent: torch.Tensor = self.to_latent(self.features(inputs))
        return latent


class Decoder(nn.Module):
    """Mirror of :class:`Encoder`: from a latent code to an input.

    Args:
        pyramid: Shape of the network.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        sizes, widths = pyramid.sizes[::-1], pyramid.widths[::-1]
        layers: list[nn.Module] = []
        if pyramid.add_final_conv_layer:
            layers += [
                VectorToMap(pyramid.latent_vec_size, widths[0], sizes[0], bias=False),
                nn.BatchNorm2d(widths[0]),
                nn.ReLU(inplace=True),
            ]
        for (width_in, width_out), (size_in, size_out) in zip(pairwise(widths), pairwise(sizes), strict=False):
            layers += [
                self._double(width_in, width_out, size_in, size_out),
                nn.BatchNorm2d(width_out),
                nn.ReLU(inplace=True),
            ]
        for _ in range(pyramid.extra_layers):
            layers += [
                nn.Conv2d(widths[-1], widths[-1], 3, padding=1, bias=False),
                nn.BatchNorm2d(widths[-1]),
                nn.ReLU(inplace=True),
            ]
        layers.append(self._double(widths[-1], pyramid.channels, sizes[-2], sizes[-1]))
        layers.append(pyramid.bound())
        self.layers = nn.Sequential(*layers)

    @staticmethod
    def _double(
        width_in: int, width_out: int, size_in: tuple[int, int], size_out: tuple[int, int]
    ) -> nn.ConvTranspose2d:
        """Build the transposed convolution from one size of the pyramid to the next larger one."""
        output_padding = (size_out[0] - 2 * size_in[0], size_out[1] - 2 * size_in[1])
        return nn.ConvTranspose2d(
            width_in, width_out, 4, stride=2, padding=1, output_padding=output_padding, bias=False
        )

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode latent codes of the encoder's shape to ``(B, C, H, W)``."""
        decoded: torch.Tensor = self.layers(latent)
        return decoded


class Discriminator(nn.Module):
    """An encoder to one number, the logit of "this input is real", that also returns its last feature map.

    Args:
        pyramid: Shape of the network; the length of its code is not used.
        normalisation: Builds what follows the inner convolutions from their number of channels.
    """

    def __init__(self, pyramid: Pyramid, normalisation: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        encoder = Encoder(replace(pyramid, latent_vec_size=1, add_final_conv_layer=True), normalisation)
        self.features = encoder.features
        self.classifier = encoder.to_latent

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(B,)``, positive for real, and features ``(B, F, h, w)`` of inputs ``(B, C, H, W)``."""
        features = self.features(inputs)
        return self.classifier(features).flatten(), features


def initialise_weights(network: nn.Module) -> None:
    """Initialise every layer of a network in place, as DCGAN does.

    Convolution weights are drawn from N(0, 0.02), batch-norm weights from N(1, 0.02), batch-norm biases are zero.
    Running statistics stay as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)

# SPDX-License-Identifier: Apache-2.0
"""The space of a backbone's features."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.backbone import Backbone
from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.place_statistics import PlaceStatistics
from ganomaly_plugin.models.components.space import Pixels, Space


class BackboneFeatures(Space):
    """Features of a frozen backbone, in units of what is usual at their place.

    Feature maps are averaged over 3x3 places, whitened by :class:`PlaceStatistics`, and joined at the places of the
    coarsest: a finer level has several vectors there. The unit of an error is the variance of normal images.

    A target holds ``2 C`` channels: the whitened features, in which errors are measured, and after them the same
    features less their mean alone. These keep the directions in which normal images differ most, from which a generator
    tells what kind of image it sees.

    Args:
        image_size: Height and width of the images in pixels, each at least 28.
        input_channels: 3 for colour; 1 turns images grey.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        backbone: Backbone for images of this size.
        rank: Fraction of directions that each covariance keeps, in (0, 1].
        neighbourhood: Side of the square of places that share a covariance; ``None`` for one covariance a level.

    Attributes:
        level_channels: Channels of the target that each level makes up, fine to coarse.
        channel_weights: Buffer ``(C, 1, 1)`` of mean one, with which all channels of the backbone weigh alike, although
            the finer levels' stand several times in the target.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        input_channels: int,
        map_sigma: float,
        backbone: Backbone,
        rank: float,
        neighbourhood: int | None,
    ) -> None:
        if not 0 < rank <= 1:
            msg = f"rank is {rank}; it is a fraction of directions, which lies in (0, 1]."
            raise ValueError(msg)
        if neighbourhood is not None:
            check_at_least(1, neighbourhood=neighbourhood)
        pixels = Pixels(image_size, input_channels, map_sigma)
        sizes = [(maps.shape[-2], maps.shape[-1]) for maps in backbone(torch.zeros(1, 3, *image_size))]
        coarsest = min(sizes)
        factors = [max(1, round(height / coarsest[0])) for height, _ in sizes]
        counts = [channels * factor**2 for channels, factor in zip(backbone.channels, factors, strict=True)]
        super().__init__(image_size, sum(counts), coarsest, map_sigma)
        self.pixels = pixels
        self.backbone = backbone
        self.factors = factors
        self.level_channels = counts
        weights = torch.cat(
            [torch.full((count, 1, 1), factor**-2.0) for count, factor in zip(counts, factors, strict=True)]
        )
        self.register_buffer("channel_weights", weights / weights.mean(), persistent=False)
        self.channel_weights: torch.Tensor
        self.statistics = PlaceStatistics(backbone.channels, factors, coarsest, rank, neighbourhood)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the levels ``(B, C, h, w)`` of pre-processed images ``(B, 3, H, W)`` in [-1, 1], fine to coarse."""
        colour = self.pixels.target(images).expand(-1, 3, -1, -1)
        levels = []
        for maps, factor in zip(self.backbone((colour + 1) / 2), self.factors, strict=True):
            pooled = F.avg_pool2d(maps, 3, stride=1, padding=1)
            size = (self.size[0] * factor, self.size[1] * factor)
            levels.append(pooled if pooled.shape[-2:] == size else F.interpolate(pooled, size, mode="bilinear"))
        return levels

    def split(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the whitened and the centred features ``(B, C, h, w)`` of a target."""
        whitened, centred = target.chunk(2, 1)
        return whitened, centred

    def whiten(self, levels: Sequence[torch.Tensor], statistics: PlaceStatistics) -> torch.Tensor:
        """Return the target ``(B, 2 C, h, w)`` of levels ``(B, C, h, w)`` by some statistics of them.

        Levels stand side by side at the places of the coarsest.
        """
        centred = statistics.centre(levels)
        parts = zip([*statistics.whiten(centred), *centred], self.factors * 2, strict=True)
        return torch.cat([F.pixel_unshuffle(level, factor) for level, factor in parts], 1)

    def target(self, images: torch.Tensor) -> torch.Tensor:
        """Return the whitened and the centred features, ``(B, 2 C, h, w)``."""
        return self.whiten(self.features(images), self.statistics)

    def error(self, target: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the squared differences to the whitened features."""
        return (self.split(target)[0] - reconstruction).square()

    def show(self, reconstruction: torch.Tensor) -> None:
        """Show nothing: features are no picture."""
        del reconstruction

    def to_map(self, error: torch.Tensor) -> torch.Tensor:
        """Turn errors into anomaly maps as :class:`Space` does; each level in its own resolution, with equal weight."""
        finest = (self.size[0] * max(self.factors), self.size[1] * max(self.factors))
        levels = []
        for part, factor in zip(error.split(self.level_channels, 1), self.factors, strict=True):
            level = F.pixel_shuffle(part, factor).mean(1, keepdim=True)
            levels.append(level if level.shape[-2:] == finest else F.interpolate(level, finest, mode="bilinear"))
        maps = torch.stack(levels).mean(0)
        smoothed: torch.Tensor = self.smooth(F.interpolate(maps, self.image_size, mode="bilinear"))
        return smoothed

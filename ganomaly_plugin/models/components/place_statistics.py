# SPDX-License-Identifier: Apache-2.0
"""What is usual at each place of feature maps, measured on normal images."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

RIDGE = 0.01
"""Variance added to every direction of features that are scaled to unit variance, as in PaDiM."""
SHRINKAGE_IMAGES = 20
"""Number of images whose covariance at a place counts as much as the covariance of all places."""
PREDICTION_RIDGE = 0.03
"""Variance added to the coarser level's features where they predict the finer ones."""


class PlaceStatistics(nn.Module):
    """Whitens the levels of a backbone by the Gaussians of normal images, one Gaussian a place.

    Each level's features are scaled, less their mean at the place, and less what the next coarser level predicts of
    them linearly; what remains is multiplied by the inverse square root of its covariance. The covariance is kept as a
    probabilistic principal component analysis (Tipping and Bishop, 1999): the directions of largest variance, and one
    variance for the rest. With all directions the squared norm is PaDiM's squared Mahalanobis distance (Defard et al.,
    2021).

    Until :meth:`fit` measures the statistics, features pass unchanged.

    Args:
        channels: Channels of each level, fine to coarse.
        factors: Height of each level's map as a multiple of the coarsest one's, 1 for the last.
        size: Height and width of the coarsest map.
        rank: Fraction of directions that each covariance keeps, in (0, 1].
        neighbourhood: Side of the square of places that share a covariance; ``None`` for one covariance a level.

    Attributes:
        unit: Buffer ``(L,)``, root mean square of each level's whitened features over unseen normal images. It divides
            them.
    """

    unit: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        factors: Sequence[int],
        size: tuple[int, int],
        rank: float,
        neighbourhood: int | None,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for index, (count, factor) in enumerate(zip(channels, factors, strict=True)):
            parent = (channels[index + 1], _scaled(size, factors[index + 1])) if index + 1 < len(channels) else None
            self.levels.append(_Level(count, _scaled(size, factor), rank, neighbourhood, parent))
        self.register_buffer("unit", torch.ones(len(channels)))

    @property
    def _levels(self) -> list["_Level"]:
        return cast("list[_Level]", list(self.levels))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Whiten the levels ``(B, C, h, w)`` of images, fine to coarse, and keep their shapes."""
        return self.whiten(self.centre(features))

    def whiten(self, centred: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Whiten what :meth:`centre` returned."""
        parents = [*centred[1:], None]
        return [
            level.whiten(feature, parent) / unit
            for level, feature, parent, unit in zip(self._levels, centred, parents, self.unit, strict=True)
        ]

    def centre(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Scale the levels ``(B, C, h, w)`` of images and take off their means, without whitening them."""
        return [level.centre(feature) for level, feature in zip(self._levels, features, strict=True)]

    @torch.no_grad()
    def fit(self, features: Sequence[torch.Tensor]) -> None:
        """Measure the statistics on the levels ``(N, C, h, w)`` of normal images; one image is enough."""
        parent: torch.Tensor | None = None
        for level, feature in reversed(list(zip(self._levels, features, strict=True))):
            parent = level.fit(feature.float(), parent)
        self.unit.fill_(1)


class _Level(nn.Module):
    """The statistics of one level, of ``P`` covariances."""

    scale: torch.Tensor
    mean: torch.Tensor
    isotropic: torch.Tensor
    factor: torch.Tensor
    prediction: torch.Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        rank: float,
        neighbourhood: int | None,
        parent: tuple[int, tuple[int, int]] | None,
    ) -> None:
        super().__init__()
        self.size = size
        self.side = neighbourhood or max(size)
        blocks = _count_blocks(size, self.side)
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.register_buffer("mean", torch.zeros(channels, *size))
        self.register_buffer("isotropic", torch.ones(blocks, 1, 1))
        self.register_buffer("factor", torch.zeros(blocks, channels, max(1, round(rank * channels))))
        if parent is not None:
            parent_channels, self.parent_size = parent
            self.parent_side = neighbourhood or max(self.parent_size)
            shape = (_count_blocks(self.parent_size, self.parent_side), parent_channels, channels)
            self.register_buffer("prediction", torch.zeros(shape))

    def centre(self, feature: torch.Tensor) -> torch.Tensor:
        """Scale features ``(B, C, h, w)`` and take off their mean at each place."""
        return feature / self.scale - self.mean

    def whiten(self, centred: torch.Tensor, parent: torch.Tensor | None) -> torch.Tensor:
        """Whiten centred features, given those of the next coarser level."""
        remaining = centred if parent is None else self._without_prediction(centred, parent)
        blocks = _to_blocks(remaining, self.side)
        whitened = self.isotropic * blocks - (blocks @ self.factor) @ self.factor.mT
        return _from_blocks(whitened, self.size, self.side)

    def _without_prediction(self, centred: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
        predicted = _to_blocks(parent, self.parent_side) @ self.prediction
        coarse = _from_blocks(predicted, self.parent_size, self.parent_side)
        return centred - F.interpolate(coarse, self.size, mode="nearest")

    def fit(self, feature: torch.Tensor, parent: torch.Tensor | None) -> torch.Tensor:
        """Measure the statistics, given the centred features of the next coarser level; return this level's."""
        deviation = feature.std((0, 2, 3), keepdim=True, correction=0)[0]
        self.scale.copy_(torch.where(deviation > 0, deviation, 1))
        self.mean.copy_((feature / self.scale).mean(0))
        centred = self.centre(feature)
        remaining = centred
        if parent is not None:
            means = _to_blocks(F.adaptive_avg_pool2d(centred, self.parent_size), self.parent_side)
            coarse = _to_blocks(parent, self.parent_side)
            covariance = coarse.mT @ coarse / self.parent_side**2 / len(parent)
            ridge = PREDICTION_RIDGE * torch.eye(covariance.shape[-1], device=covariance.device)
            cross = coarse.mT @ means / self.parent_side**2 / len(parent)
            self.prediction.copy_(torch.linalg.solve(covariance + ridge, cross))
            remaining = self._without_prediction(centred, parent)
        blocks = _to_blocks(remaining, self.side)
        # Blocks at the border may be padded with zeros.
        counts = _to_blocks(torch.ones_like(remaining[:, :1]), self.side).sum(1, keepdim=True)
        self._keep_directions(blocks.mT @ blocks / counts, len(feature))
        return centred

    def _keep_directions(self, covariance: torch.Tensor, n_images: int) -> None:
        """Set the whitening from covariances ``(P, C, C)``, shrunk towards their mean the more, the fewer the images.

        The inverse square root of a covariance with eigenvalues ``e`` in directions ``U``, and ``s`` in all others, is
        ``s^-1/2 I - U (s^-1/2 - e^-1/2) U'``.
        """
        channels, rank = self.factor.shape[1:]
        weight = SHRINKAGE_IMAGES / (SHRINKAGE_IMAGES + n_images)
        shrunk = (1 - weight) * covariance + weight * covariance.mean(0)
        variances, directions = torch.linalg.eigh(shrunk.double())
        variances = variances.clamp(min=0) + RIDGE
        rest = 1 / (1 / variances[:, : max(1, channels - rank)]).mean(1, keepdim=True)
        kept = (rest.rsqrt() - variances[:, -rank:].rsqrt()).clamp(min=0)
        self.isotropic.copy_(rest.rsqrt()[..., None])
        self.factor.copy_(directions[:, :, -rank:] * kept.sqrt()[:, None])


def _scaled(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return (size[0] * factor, size[1] * factor)


def _count_blocks(size: tuple[int, int], side: int) -> int:
    return -(-size[0] // side) * -(-size[1] // side)


def _to_blocks(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Turn maps ``(B, C, h, w)``, padded with zeros, into one list of vectors a block, ``(P, B * side^2, C)``."""
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (0, -width % side, 0, -height % side))
    blocks = padded.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side)
    return blocks.permute(2, 4, 0, 3, 5, 1).flatten(2, 4).flatten(0, 1)


def _from_blocks(blocks: torch.Tensor, size: tuple[int, int], side: int) -> torch.Tensor:
    """Turn blocks back into maps ``(B, C, h, w)``."""
    columns = -(-size[1] // side)
    parts = blocks.unflatten(1, (-1, side, side)).unflatten(0, (-1, columns))
    return parts.permute(2, 5, 0, 3, 1, 4).flatten(4, 5).flatten(2, 3)[..., : size[0], : size[1]]

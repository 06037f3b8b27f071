# SPDX-License-Identifier: Apache-2.0
"""The features that a generator learns from: each whitened by statistics that have not seen its image."""

from collections.abc import Sequence
from copy import deepcopy

import torch

from ganomaly_plugin.models.components.feature_space import BackboneFeatures

FOLDS = 5
"""Parts of the training images; the statistics for one are measured on the others."""


class TrainingFeatures:
    """Cross-fitted features of the training images.

    Statistics fit the images that they were measured on too well: whitened by them, these vary less than new images,
    the more so, the fewer there are. A generator that learns from them finds new normal images anomalous. Here the
    training images are whitened as new ones would be.

    Making one measures the statistics of the space on all images. They do not depend on the order of the images.

    Args:
        space: The space, whose statistics are set.
        names: Name of each image, all different.
        levels: Features ``(N, C, h, w)`` of the images, fine to coarse.
        keep: Whether to keep the targets of all images, ``N * (sum of C * h * w) * 4`` bytes of 16-bit numbers, for
            images that never change.
    """

    def __init__(
        self, space: BackboneFeatures, names: Sequence[str], levels: Sequence[torch.Tensor], keep: bool
    ) -> None:
        self.space = space
        order = sorted(range(len(names)), key=lambda index: names[index])
        self.index = {names[place]: index for index, place in enumerate(order)}
        levels = [level[order] for level in levels]
        folds = torch.arange(len(names), device=levels[0].device) % FOLDS
        space.statistics.fit(levels)
        self._held_out = []
        squares = torch.zeros(len(levels), device=levels[0].device)
        for fold in range(min(FOLDS, len(names))):
            statistics = deepcopy(space.statistics)
            if len(names) > 1:
                statistics.fit([level[folds != fold] for level in levels])
            whitened = statistics([level[folds == fold] for level in levels])
            squares += torch.stack([part.square().sum() for part in whitened])
            self._held_out.append(statistics)
        unit = (squares / torch.tensor([level.numel() for level in levels], device=squares.device)).sqrt()
        for statistics in [space.statistics, *self._held_out]:
            statistics.unit.copy_(unit)
        self._order: list[int] = []
        self._kept: torch.Tensor | None = None
        if keep:
            size = (len(names), 2 * space.channels, *space.size)
            self._kept = torch.empty(size, dtype=torch.float16, device=levels[0].device)
            for fold, statistics in enumerate(self._held_out):
                self._kept[folds == fold] = space.whiten([level[folds == fold] for level in levels], statistics).half()

    @property
    def kept(self) -> bool:
        """Whether the targets of all images are kept."""
        return self._kept is not None

    def draw(self, count: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Return kept targets ``(count, 2 C, h, w)``, each image once before any comes again.

        Args:
            count: Number of targets; those that remain of a pass over the images count with the next pass.
            rank: Which of several processes this is. With random numbers alike each draws a part of its own.
            world_size: Number of these processes.
        """
        assert self._kept is not None  # noqa: S101  (only kept targets are drawn)
        while len(self._order) < count:
            self._order += torch.randperm(len(self._kept)).tolist()[rank::world_size]
        chosen, self._order = self._order[:count], self._order[count:]
        return self._kept[chosen].float()

    def target(self, names: Sequence[str], images: torch.Tensor) -> torch.Tensor:
        """Return the targets ``(B, 2 C, h, w)`` of training images.

        Images that were not measured, such as those of an incomplete batch that the loader left out, are new to the
        statistics of all images.

        Args:
            names: Their names.
            images: Pre-processed images ``(B, 3, H, W)``, used where features are not kept.
        """
        indices = [self.index.get(name) for name in names]
        computed = [place for place, index in enumerate(indices) if self._kept is None or index is None]
        levels = self.space.features(images[computed]) if computed else []
        targets = []
        for place, index in enumerate(indices):
            if self._kept is not None and index is not None:
                targets.append(self._kept[index].float())
            else:
                statistics = self.space.statistics if index is None else self._held_out[index % FOLDS]
                row = computed.index(place)
                targets.append(self.space.whiten([level[[row]] for level in levels], statistics)[0])
        return torch.stack(targets)

# SPDX-License-Identifier: Apache-2.0
"""What the finished cells say: means, deviations and intervals, and which differences are real."""

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ganomaly_plugin.compare.grid import Cell, Grid
from ganomaly_plugin.compare.metrics import (
    Array,
    Interval,
    PixelCounts,
    image_measures,
    interval,
    over_seeds,
    pixel_measures,
    resample,
)

RESAMPLES = 1000
"""Number of bootstrap resamples."""
MEAN = "mean"
"""Stands for the mean over a dataset's categories."""


class Outcome(NamedTuple):
    """A cell and what became of it: its result, or the reason of its failure."""

    cell: Cell
    folder: Path
    result: dict[str, Any] | None
    reason: str = ""

    def arrays(self) -> dict[str, Array]:
        """Raw scores, labels and, where there are masks, pixel counts of the test images."""
        with np.load(self.folder / "scores.npz") as file:
            return dict(file)


class Samples(NamedTuple):
    """A measure of one model in one category: by seed ``(S,)``, and under the bootstrap ``(S, B)``."""

    seeds: list[int]
    plain: Array
    resampled: Array


class Row(NamedTuple):
    """A line of the results: one measure of one model, and its difference to the reference."""

    dataset: str
    category: str
    model: str
    measure: str
    value: Interval
    difference: Interval | None


def read_outcome(folder: Path, cell: Cell, reason: str = "") -> Outcome:
    """Read a cell's result, if it has one."""
    path = folder / cell.path
    file = path / "result.json"
    return Outcome(cell, path, json.loads(file.read_text()) if file.exists() else None, reason)


class Summary:
    """Figures of a comparison.

    Images are resampled within each seed, the same ones for every model, then seeds; so an interval covers what other
    test images and other seeds would have given, and a difference is between models that saw the same of both.

    Args:
        grid: The comparison.
        outcomes: Its cells, failed ones too.
    """

    def __init__(self, grid: Grid, outcomes: Iterable[Outcome]) -> None:
        self.grid = grid
        self.outcomes = list(outcomes)
        self.done = [outcome for outcome in self.outcomes if outcome.result is not None]

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """Categories of each dataset."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for cell in self.grid.cells:
            found[cell.dataset][cell.category] = None
        return {dataset: list(categories) for dataset, categories in found.items()}

    @cached_property
    def hashes(self) -> dict[tuple[str, str, int], set[str]]:
        """Hashes of training and test images by dataset, category and seed: one each, or models saw different data."""
        found: dict[tuple[str, str, int], set[str]] = defaultdict(set)
        for outcome in self.done:
            cell, data = outcome.cell, (outcome.result or {})["data"]
            found[cell.dataset, cell.category, cell.seed].add(f"{data['train']}/{data['test']}")
        return dict(found)

    @cached_property
    def samples(self) -> dict[tuple[str, str, str, str], Samples]:
        """Samples by dataset, category (``mean`` too), model and measure."""
        gathered: dict[tuple[str, str, str, str], list[tuple[int, float, Array]]] = defaultdict(list)
        for outcome in self.done:
            cell, arrays = outcome.cell, outcome.arrays()
            # Seeded by the cell's data alone, so that all models get the same images.
            generator = np.random.default_rng([cell.seed, *f"{cell.dataset}/{cell.category}".encode()])
            weights = resample(arrays["labels"], RESAMPLES, generator)
            resampled = image_measures(arrays["scores"], arrays["labels"], weights)
            if "true" in arrays:
                counts = PixelCounts(*(arrays[name] for name in PixelCounts._fields))
                resampled |= pixel_measures(counts, weights)
            for measure, plain in (outcome.result or {})["metrics"].items():
                values = resampled[measure]
                gathered[cell.dataset, cell.category, cell.model, measure].append((cell.seed, plain, values))
        samples = {}
        for key, runs in gathered.items():
            runs.sort(key=lambda run: run[0])
            samples[key] = Samples(
                [seed for seed, _, _ in runs],
                np.array([plain for _, plain, _ in runs]),
                np.stack([values for _, _, values in runs]),
            )
        return samples | self._means(samples)

    def _means(self, samples: dict[tuple[str, str, str, str], Samples]) -> dict[tuple[str, str, str, str], Samples]:
        """Average over the categories of each dataset, for models that have all of them with the same seeds."""
        means = {}
        for dataset, categories in self.categories.items():
            for model, measure in {key[2:] for key in samples if key[0] == dataset}:
                parts = [samples.get((dataset, category, model, measure)) for category in categories]
                whole = [part for part in parts if part is not None]
                if len(whole) == len(parts) and all(part.seeds == whole[0].seeds for part in whole):
                    means[dataset, MEAN, model, measure] = Samples(
                        whole[0].seeds,
                        np.mean([part.plain for part in whole], axis=0),
                        np.mean([part.resampled for part in whole], axis=0),
                    )
        return means

    def value(self, dataset: str, category: str, model: str, measure: str) -> Interval | None:
        """Return a figure, or ``None`` where there is none."""
        samples = self.samples.get((dataset, category, model, measure))
        if samples is None:
            return None
        return interval(samples.plain, over_seeds(samples.resampled, np.random.default_rng(0)))

    def difference(self, dataset: str, category: str, model: str, other: str, measure: str) -> Interval | None:
        """Return by how much a model exceeds another in the seeds that both have, or ``None`` if it cannot be said."""
        first, second = (self.samples.get((dataset, category, name, measure)) for name in (model, other))
        if first is None or second is None:
            return None
        seeds = [seed for seed in first.seeds if seed in second.seeds and self._same_data(dataset, category, seed)]
        if not seeds:
            return None
        here, there = ([samples.seeds.index(seed) for seed in seeds] for samples in (first, second))
        resampled = first.resampled[here] - second.resampled[there]
        return interval(first.plain[here] - second.plain[there], over_seeds(resampled, np.random.default_rng(0)))

    def _same_data(self, dataset: str, category: str, seed: int) -> bool:
        categories = self.categories[dataset] if category == MEAN else [category]
        return all(len(self.hashes.get((dataset, name, seed), ())) == 1 for name in categories)

    def measures(self, dataset: str) -> list[str]:
        """Measures that a dataset has."""
        return list(dict.fromkeys(key[3] for key in self.samples if key[0] == dataset))

    @cached_property
    def rows(self) -> list[Row]:
        """All figures, each with its difference to the reference."""
        rows = []
        for dataset, categories in self.categories.items():
            for category in [*categories, MEAN]:
                for model in self.grid.models:
                    for measure in self.measures(dataset):
                        value = self.value(dataset, category, model, measure)
                        if value is not None:
                            other = self.grid.reference
                            difference = (
                                None if model == other else self.difference(dataset, category, model, other, measure)
                            )
                            rows.append(Row(dataset, category, model, measure, value, difference))
        return rows

    def duel(self, model: str, other: str, measure: str = "image_AUROC") -> tuple[int, int, int]:
        """Count the categories in which a model wins, ties and loses; a tie's 95 % interval holds zero."""
        found = [
            self.difference(dataset, category, model, other, measure)
            for dataset, categories in self.categories.items()
            for category in categories
        ]
        known = [difference for difference in found if difference is not None]
        wins = sum(difference.low > 0 for difference in known)
        losses = sum(difference.high < 0 for difference in known)
        return wins, len(known) - wins - losses, losses

    def leads(self, dataset: str, model: str, measure: str) -> bool:
        """Whether a model's mean exceeds every other's by more than chance: what alone deserves bold face."""
        others = [other for other in self.grid.models if other != model]
        found = [self.difference(dataset, MEAN, model, other, measure) for other in others]
        known = [difference for difference in found if difference is not None]
        return bool(known) and all(difference.low > 0 for difference in known)

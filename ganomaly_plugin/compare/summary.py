# SPDX-License-Identifier: Apache-2.0
"""Means, standard deviations and intervals of the finished runs, and which differences are significant."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ganomaly_plugin.compare.grid import Grid, Run
from ganomaly_plugin.compare.metrics import (
    Array,
    Interval,
    PixelCounts,
    interval,
    over_seeds,
    resample,
    weighted_image_metrics,
    weighted_pixel_metrics,
)

RESAMPLES = 1000
"""Number of bootstrap resamples."""
MEAN = "mean"
"""Stands for the mean over a dataset's categories."""
BEST_EPOCH = "image_AUROC_best_epoch_selected_on_test"
"""Image AUROC of the epoch that is best on the test set: optimistic, for comparison with papers that report it."""
LAST_EPOCHS = 5
CHANGE = f"image_AUROC_mean_change_last_{LAST_EPOCHS}_epochs"
"""Mean absolute change of image AUROC from epoch to epoch over the last epochs."""


class Result(NamedTuple):
    """A run and its record, which is empty if it failed, and the reason then."""

    run: Run
    folder: Path
    record: dict[str, Any]
    reason: str = ""

    def arrays(self) -> dict[str, Array]:
        """Raw scores, labels and, where there are masks, pixel counts of the test images."""
        with np.load(self.folder / "scores.npz") as file:
            return dict(file)


class Samples(NamedTuple):
    """A metric of one model in one category: by seed ``(S,)``, and under the bootstrap ``(S, B)``, NaN without one."""

    seeds: list[int]
    plain: Array
    resampled: Array


class Row(NamedTuple):
    """A line of the results: one metric of one model, and its difference to the reference."""

    dataset: str
    category: str
    model: str
    metric: str
    value: Interval
    difference: Interval | None


def read_result(folder: Path, run: Run, reason: str = "") -> Result:
    """Read a run's record, if it has one."""
    path = folder / run.path
    file = path / "result.json"
    return Result(run, path, json.loads(file.read_text()) if file.exists() else {}, reason)


def epoch_figures(epochs: Sequence[float]) -> dict[str, float]:
    """Return the best of the image AUROCs of a run's epochs, and how much the last ones change from epoch to epoch."""
    if not epochs:
        return {}
    changes = np.abs(np.diff(epochs[-LAST_EPOCHS:]))
    return {BEST_EPOCH: max(epochs), CHANGE: float(changes.mean()) if len(changes) else float("nan")}


class Summary:
    """Figures of a comparison.

    Images are resampled within each seed, the same ones for every model, then seeds; so an interval covers what other
    test images and other seeds would have given, and a difference is between models that saw the same of both.

    Args:
        grid: The comparison.
        results: Its runs, failed ones too.
    """

    def __init__(self, grid: Grid, results: Iterable[Result]) -> None:
        self.grid = grid
        self.results = list(results)
        self.done = [result for result in self.results if result.record]

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """Categories of each dataset."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for run in self.grid.runs:
            found[run.dataset][run.category] = None
        return {dataset: list(categories) for dataset, categories in found.items()}

    @cached_property
    def hashes(self) -> dict[tuple[str, str, int], set[str]]:
        """Hashes of training and test images by dataset, category and seed: one each, or models saw different data."""
        found: dict[tuple[str, str, int], set[str]] = defaultdict(set)
        for result in self.done:
            run, data = result.run, result.record["data"]
            found[run.dataset, run.category, run.seed].add(f"{data['train']}/{data['test']}")
        return dict(found)

    @cached_property
    def samples(self) -> dict[tuple[str, str, str, str], Samples]:
        """Samples by dataset, category (``mean`` too), model and metric."""
        gathered: dict[tuple[str, str, str, str], list[tuple[int, float, Array]]] = defaultdict(list)
        for result in self.done:
            run, arrays = result.run, result.arrays()
            # Seeded by the run's data alone, so that all models get the same images.
            generator = np.random.default_rng([run.seed, *f"{run.dataset}/{run.category}".encode()])
            weights = resample(arrays["labels"], RESAMPLES, generator)
            resampled = weighted_image_metrics(arrays["scores"], arrays["labels"], weights)
            if "true" in arrays:
                counts = PixelCounts(*(arrays[name] for name in PixelCounts._fields))
                resampled |= weighted_pixel_metrics(counts, weights)
            plain = result.record["metrics"] | epoch_figures(result.record["epochs"])
            for metric, value in plain.items():
                values = resampled.get(metric, np.full(RESAMPLES, np.nan))
                gathered[run.dataset, run.category, run.model, metric].append((run.seed, value, values))
        samples = {}
        for key, found in gathered.items():
            seeds, plains, values_of_seeds = zip(*sorted(found, key=itemgetter(0)), strict=True)
            samples[key] = Samples(list(seeds), np.array(plains), np.stack(values_of_seeds))
        return samples | self._means(samples)

    def _means(self, samples: dict[tuple[str, str, str, str], Samples]) -> dict[tuple[str, str, str, str], Samples]:
        """Average over the categories of each dataset, for models that have all of them with the same seeds."""
        means = {}
        for dataset, categories in self.categories.items():
            for model, metric in {key[2:] for key in samples if key[0] == dataset}:
                parts = [samples.get((dataset, category, model, metric)) for category in categories]
                whole = [part for part in parts if part is not None]
                if len(whole) == len(parts) and all(part.seeds == whole[0].seeds for part in whole):
                    means[dataset, MEAN, model, metric] = Samples(
                        whole[0].seeds,
                        np.mean([part.plain for part in whole], axis=0),
                        np.mean([part.resampled for part in whole], axis=0),
                    )
        return means

    def value(self, dataset: str, category: str, model: str, metric: str) -> Interval | None:
        """Return a figure, or ``None`` where there is none."""
        samples = self.samples.get((dataset, category, model, metric))
        if samples is None:
            return None
        return interval(samples.plain, over_seeds(samples.resampled, np.random.default_rng(0)))

    def difference(self, dataset: str, category: str, model: str, other: str, metric: str) -> Interval | None:
        """Return by how much a model exceeds another in the seeds that both have, or ``None`` if it cannot be said."""
        first, second = (self.samples.get((dataset, category, name, metric)) for name in (model, other))
        if first is None or second is None or model == other:
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

    def metrics(self, dataset: str, *, of_epochs: bool = False) -> list[str]:
        """Metrics that a dataset has after the last epoch, or those that look at every epoch."""
        names = dict.fromkeys(key[3] for key in self.samples if key[0] == dataset)
        return [name for name in names if (name in (BEST_EPOCH, CHANGE)) == of_epochs]

    @cached_property
    def rows(self) -> list[Row]:
        """All figures, each with its difference to the reference."""
        rows = []
        for dataset, categories in self.categories.items():
            for category in [*categories, MEAN]:
                for model in self.grid.models:
                    for metric in [*self.metrics(dataset), *self.metrics(dataset, of_epochs=True)]:
                        value = self.value(dataset, category, model, metric)
                        if value is not None:
                            difference = self.difference(dataset, category, model, self.grid.reference, metric)
                            rows.append(Row(dataset, category, model, metric, value, difference))
        return rows

    def pairwise_comparison(self, model: str, other: str, metric: str = "image_AUROC") -> tuple[int, int, int]:
        """Count the categories in which a model is better, tied and worse; a tie's 95 % interval holds zero."""
        found = [
            self.difference(dataset, category, model, other, metric)
            for dataset, categories in self.categories.items()
            for category in categories
        ]
        known = [difference for difference in found if difference is not None]
        wins = sum(difference.low > 0 for difference in known)
        losses = sum(difference.high < 0 for difference in known)
        return wins, len(known) - wins - losses, losses

    def leads(self, dataset: str, model: str, metric: str) -> bool:
        """Whether a model's mean is significantly better than every other's, which the tables set in bold."""
        others = [other for other in self.grid.models if other != model]
        found = [self.difference(dataset, MEAN, model, other, metric) for other in others]
        known = [difference for difference in found if difference is not None]
        return bool(known) and all(difference.low > 0 for difference in known)

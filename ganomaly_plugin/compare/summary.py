# SPDX-License-Identifier: Apache-2.0
"""Means, standard deviations and intervals of the finished runs, and which differences are significant."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from ganomaly_plugin.compare.grid import Grid
from ganomaly_plugin.compare.metrics import Array, PixelCounts, weighted_image_metrics, weighted_pixel_metrics
from ganomaly_plugin.compare.record import Result
from ganomaly_plugin.compare.statistics import ALPHA, Estimate, draw_weights, estimate, holm, normalise

RESAMPLES = 1000
"""Number of bootstrap resamples."""
MEAN = "mean"
"""Stands for the mean over a dataset's categories."""
UNTUNED = "mean without tuning categories"
"""Stands for the mean over those categories on which no model's settings were chosen, where some were."""
BEST_EPOCH = "image_AUROC_best_epoch_selected_on_test"
"""Image AUROC of the epoch that is best on the test set: optimistic, for comparison with papers that report it."""
LAST_EPOCHS = 5
CHANGE = f"image_AUROC_mean_change_last_{LAST_EPOCHS}_epochs"
"""Mean absolute change of image AUROC from epoch to epoch over the last epochs."""


class Samples(NamedTuple):
    """A metric of one model in one category: by seed ``(S,)``, and under the bootstrap ``(S, B)``, NaN without one."""

    seeds: list[int]
    plain: Array
    resampled: Array


class Row(NamedTuple):
    """A line of the results: one metric of one model, and its difference to the reference.

    ``p_value`` is that of the difference, corrected for all pairs of models.
    """

    dataset: str
    category: str
    model: str
    metric: str
    value: Estimate
    difference: Estimate | None
    p_value: float | None


def epoch_figures(epochs: Sequence[float]) -> dict[str, float]:
    """Return the best of the image AUROCs of a run's epochs, and how much the last ones change from epoch to epoch."""
    if not epochs:
        return {}
    changes = np.abs(np.diff(epochs[-LAST_EPOCHS:]))
    return {BEST_EPOCH: max(epochs)} | ({CHANGE: float(changes.mean())} if len(changes) else {})


class Summary:
    """Figures of a comparison.

    A test image has one weight in a resample, whichever models, categories and seeds test it, so a difference is
    between models that saw the same images. One model is better than another where the interval of their difference
    over seeds excludes zero after Holm's correction for all pairs of models, within a dataset, category and metric.

    Args:
        grid: The comparison.
        results: Its runs, failed ones too.
    """

    def __init__(self, grid: Grid, results: Iterable[Result]) -> None:
        self.grid = grid
        self.results = list(results)
        self.done = [result for result in self.results if result.record]
        self._p_values: dict[tuple[str, str, str], dict[frozenset[str], float]] = {}

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

    def tuning_categories(self, dataset: str) -> list[str]:
        """Categories of a dataset on which settings of some model were chosen."""
        tuned = {name for chosen in self.grid.tuned_on.values() for name in chosen.get(dataset, ())}
        return [name for name in self.categories[dataset] if name in tuned]

    def members(self, dataset: str, category: str) -> list[str]:
        """Categories that a figure is the mean of."""
        if category == MEAN:
            return self.categories[dataset]
        if category == UNTUNED:
            tuned = self.tuning_categories(dataset)
            return [name for name in self.categories[dataset] if name not in tuned]
        return [category]

    def means(self, dataset: str) -> list[str]:
        """``MEAN`` and, where settings were chosen on some categories but not on all, ``UNTUNED``."""
        return [MEAN, UNTUNED] if 0 < len(self.tuning_categories(dataset)) < len(self.categories[dataset]) else [MEAN]

    def mean_title(self, dataset: str, mean: str, title: str) -> str:
        """Complete a title by the categories that a mean leaves out."""
        return title if mean == MEAN else f"{title} without {', '.join(self.tuning_categories(dataset))}"

    @cached_property
    def samples(self) -> dict[tuple[str, str, str, str], Samples]:
        """Samples by dataset, category (means too), model and metric."""
        gathered: dict[tuple[str, str, str, str], list[tuple[int, float, Array]]] = defaultdict(list)
        for dataset in self.categories:
            loaded = [(result, result.arrays()) for result in self.done if result.run.dataset == dataset]
            if not loaded:
                continue
            images = np.unique(np.concatenate([arrays["images"] for _, arrays in loaded]))
            all_weights = draw_weights(len(images), RESAMPLES, np.random.default_rng([0, *dataset.encode()]))
            for result, arrays in loaded:
                labels = arrays["labels"]
                weights = normalise(all_weights[:, np.searchsorted(images, arrays["images"])], labels)
                resampled = weighted_image_metrics(arrays["scores"], labels, weights)
                if "true" in arrays:
                    counts = PixelCounts(*(arrays[name] for name in PixelCounts._fields))
                    resampled |= weighted_pixel_metrics(counts, weights)
                for metric, value in (result.record["metrics"] | epoch_figures(result.record["epochs"])).items():
                    if value is not None:
                        values = resampled.get(metric, np.full(RESAMPLES, np.nan))
                        key = dataset, result.run.category, result.run.model, metric
                        gathered[key].append((result.run.seed, value, values))
        samples = {}
        for key, found in gathered.items():
            seeds, plains, values_of_seeds = zip(*sorted(found, key=itemgetter(0)), strict=True)
            samples[key] = Samples(list(seeds), np.array(plains), np.stack(values_of_seeds))
        return samples | self._means(samples)

    def _means(self, samples: dict[tuple[str, str, str, str], Samples]) -> dict[tuple[str, str, str, str], Samples]:
        """Average over the categories of each dataset, for models that have all of them with the same seeds."""
        found = {}
        for dataset, mean in ((name, mean) for name in self.categories for mean in self.means(name)):
            for model, metric in {key[2:] for key in samples if key[0] == dataset}:
                parts = [samples.get((dataset, name, model, metric)) for name in self.members(dataset, mean)]
                whole = [part for part in parts if part is not None]
                if len(whole) == len(parts) and all(part.seeds == whole[0].seeds for part in whole):
                    found[dataset, mean, model, metric] = Samples(
                        whole[0].seeds,
                        np.mean([part.plain for part in whole], axis=0),
                        np.mean([part.resampled for part in whole], axis=0),
                    )
        return found

    def value(self, dataset: str, category: str, model: str, metric: str) -> Estimate | None:
        """Return a figure, or ``None`` where there is none."""
        samples = self.samples.get((dataset, category, model, metric))
        return None if samples is None else estimate(samples.plain, samples.resampled)

    def difference(self, dataset: str, category: str, model: str, other: str, metric: str) -> Estimate | None:
        """Return by how much a model exceeds another in the seeds that both have, or ``None`` if it cannot be said."""
        first, second = (self.samples.get((dataset, category, name, metric)) for name in (model, other))
        if first is None or second is None or model == other:
            return None
        seeds = [seed for seed in first.seeds if seed in second.seeds and self._same_data(dataset, category, seed)]
        if not seeds:
            return None
        here, there = ([samples.seeds.index(seed) for seed in seeds] for samples in (first, second))
        return estimate(first.plain[here] - second.plain[there], first.resampled[here] - second.resampled[there])

    def _same_data(self, dataset: str, category: str, seed: int) -> bool:
        names = self.members(dataset, category)
        return all(len(self.hashes.get((dataset, name, seed), ())) == 1 for name in names)

    def p_value(self, dataset: str, category: str, model: str, other: str, metric: str) -> float | None:
        """Return the p-value of a difference over seeds, corrected for all pairs of models, or ``None`` without one."""
        key = dataset, category, metric
        if key not in self._p_values:
            pairs = list(combinations(self.grid.models, 2))
            found = [self.difference(dataset, category, *pair, metric) for pair in pairs]
            known = {
                frozenset(pair): difference.p_value
                for pair, difference in zip(pairs, found, strict=True)
                if difference is not None and difference.p_value is not None
            }
            self._p_values[key] = dict(zip(known, holm(list(known.values())).tolist(), strict=True))
        return self._p_values[key].get(frozenset((model, other)))

    def is_better(self, dataset: str, category: str, model: str, other: str, metric: str) -> bool:
        """Whether a model is significantly better than another, over seeds."""
        difference = self.difference(dataset, category, model, other, metric)
        p_value = self.p_value(dataset, category, model, other, metric)
        return difference is not None and p_value is not None and difference.mean > 0 and p_value < ALPHA

    def metrics(self, dataset: str, *, of_epochs: bool = False) -> list[str]:
        """Metrics that a dataset has after the last epoch, or those that look at every epoch."""
        names = dict.fromkeys(key[3] for key in self.samples if key[0] == dataset)
        return [name for name in names if (name in (BEST_EPOCH, CHANGE)) == of_epochs]

    @cached_property
    def rows(self) -> list[Row]:
        """All figures, each with its difference to the reference."""
        rows = []
        for dataset, categories in self.categories.items():
            for category in [*categories, *self.means(dataset)]:
                for model in self.grid.models:
                    for metric in [*self.metrics(dataset), *self.metrics(dataset, of_epochs=True)]:
                        key = dataset, category, model
                        value = self.value(*key, metric)
                        if value is not None:
                            difference = self.difference(*key, self.grid.reference, metric)
                            p_value = self.p_value(*key, self.grid.reference, metric)
                            rows.append(Row(*key, metric, value, difference, p_value))
        return rows

    def pairwise_comparison(self, model: str, other: str, metric: str = "image_AUROC") -> tuple[int, int, int]:
        """Count the categories in which a model is better, neither, and worse."""
        places = [(dataset, category) for dataset, categories in self.categories.items() for category in categories]
        known = [place for place in places if self.difference(*place, model, other, metric)]
        wins = sum(self.is_better(*place, model, other, metric) for place in known)
        losses = sum(self.is_better(*place, other, model, metric) for place in known)
        return wins, len(known) - wins - losses, losses

    def leads(self, dataset: str, model: str, metric: str, category: str = MEAN) -> bool:
        """Whether a model's mean is significantly better than every other's, which the tables set in bold."""
        others = [name for name in self.grid.models if name != model and self.value(dataset, category, name, metric)]
        return bool(others) and all(self.is_better(dataset, category, model, name, metric) for name in others)

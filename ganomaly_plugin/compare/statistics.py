# SPDX-License-Identifier: Apache-2.0
"""What a comparison's figures say about other test images, and what about other seeds.

These are two questions. *Over test images, these seeds*: a Bayesian bootstrap (Rubin, 1981) weighs each distinct image
by a number drawn from an exponential distribution, the same number in every seed, category and model that tests the
image. ``scipy.stats.bootstrap`` does not serve: images that several categories or seeds share must be drawn together,
and it would call scikit-learn once for each resample and metric, where here one sort serves all of them. *Over seeds*:
Student's t interval of the seeds' values, for a difference of the paired values. A percentile bootstrap over so few
seeds would be too narrow: by a tenth with five of them, by a third with two.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_1samp

from ganomaly_plugin.compare.metrics import Array

ALPHA = 0.05
"""Intervals miss with this probability, and corrected p-values below it are significant."""
MIN_SEEDS = 5
"""Seeds from which an interval over seeds is given."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A metric of a model, or the difference of two models' on the same seeds and images.

    Attributes:
        mean: Mean over seeds.
        std: Standard deviation over seeds; ``None`` for one seed.
        n_seeds: Number of seeds.
        over_images: Interval over test images, for the mean of these seeds; ``None`` where the scores are not known.
        over_seeds: Interval over seeds; ``None`` below ``MIN_SEEDS``.
        p_value: Probability of a mean as far from zero if seeds alone made it; ``None`` below ``MIN_SEEDS``.
    """

    mean: float
    std: float | None
    n_seeds: int
    over_images: Interval | None
    over_seeds: Interval | None
    p_value: float | None

    def __str__(self) -> str:
        """Return mean and standard deviation, as tables show them."""
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


def estimate(plain: Array, resampled: Array) -> Estimate:
    """Summarise a metric or a difference.

    Args:
        plain: The value itself, one a seed ``(S,)``.
        resampled: The same under the bootstrap, ``(S, B)``; NaN where the scores are not known.
    """
    means = resampled.mean(axis=0)
    over_images = None if np.isnan(means).any() else Interval(*np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2]).tolist())
    n_seeds, mean = len(plain), float(plain.mean())
    std = float(plain.std(ddof=1)) if n_seeds > 1 else None
    over_seeds, p_value = None, None
    if n_seeds >= MIN_SEEDS:
        if np.ptp(plain) < 1e-12:  # Rounding alone, which has no t statistic.
            over_seeds, p_value = Interval(mean, mean), float(abs(mean) < 1e-12)
        else:
            test = ttest_1samp(plain, 0)
            over_seeds = Interval(*map(float, test.confidence_interval(1 - ALPHA)))
            p_value = float(test.pvalue)
    return Estimate(mean, std, n_seeds, over_images, over_seeds, p_value)


def holm(p_values: npt.ArrayLike) -> Array:
    """Correct the p-values ``(N,)`` of hypotheses that are tested together (Holm, 1979)."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return corrected


def draw_weights(n_images: int, n_resamples: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw a weight of each distinct image in each resample, ``(n_resamples, n_images)``."""
    return generator.standard_exponential((n_resamples, n_images), dtype=np.float32)


def normalise(weights: npt.NDArray[np.floating], labels: Array) -> Array:
    """Scale weights ``(B, N)`` so that those of either kind, by its labels ``(N,)``, add up to its number of images.

    A resample then has as many normal and anomalous images as the test set.
    """
    scaled = weights.astype(np.float64)
    for kind in np.unique(labels):
        members = labels == kind
        scaled[:, members] *= members.sum() / scaled[:, members].sum(axis=1, keepdims=True)
    return scaled

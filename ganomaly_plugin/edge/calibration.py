# SPDX-License-Identifier: Apache-2.0
"""Thresholds from the scores of a line's own parts, and what they promise."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]

_ROUNDING = 1e-9
"""Keeps ranks that are whole numbers but for the rounding of their factors from being rounded up."""
_STEP = 1e-6
"""How far, relatively, a threshold lies below the smallest score of all. The next float below zero is zero to a CPU."""
_NORMAL_QUANTILE = 1.959964
"""Of 97.5 %, for 95 % intervals."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and the scores that they come from."""

    threshold: float
    """Score above which an image is anomalous."""
    pixel_threshold: float | None
    """Value of the map above which a pixel is anomalous; ``None`` for models without maps."""
    good: Scores
    """Scores of the good parts ``(n,)``."""
    bad: Scores
    """Scores of the bad parts ``(m,)``."""
    guarantee: str
    """What the threshold promises of new parts."""

    @property
    def false_alarms(self) -> int:
        """Number of good parts that are called anomalous."""
        return int((self.good > self.threshold).sum())

    @property
    def misses(self) -> int:
        """Number of bad parts that are called normal."""
        return int((self.bad <= self.threshold).sum())

    def table(self) -> str:
        """Return the thresholds, the errors on these pictures with 95 % intervals (Wilson), and the guarantee."""
        lines = [f"threshold        {self.threshold:.6g}"]
        if self.pixel_threshold is not None:
            lines.append(f"pixel threshold  {self.pixel_threshold:.6g}")
        for name, count, scores in (
            ("false alarms", self.false_alarms, self.good),
            ("misses", self.misses, self.bad),
        ):
            if len(scores):
                low, high = wilson_interval(count, len(scores))
                rate = f"{count / len(scores):.1%} (95 % interval {low:.1%} to {high:.1%})"
                lines.append(f"{name:16} {count} of {len(scores)} pictures, {rate}")
        return "\n".join([*lines, self.guarantee])


def check_pictures(good: int, bad: int, false_alarms: float | None, recall: float | None) -> None:
    """Check that a threshold can follow from so many pictures.

    Raises:
        ValueError: If there are too few, or a fraction is out of its range.
    """
    for name, value in (("false_alarms", false_alarms), ("recall", recall)):
        if value is not None and not 0 < value < 1:
            msg = f"{name} is {value}, but must lie between 0 and 1."
            raise ValueError(msg)
    if false_alarms is not None and recall is not None:
        msg = "A threshold follows from false_alarms or from recall: give one of them."
        raise ValueError(msg)
    if not good:
        msg = "There is no picture of a good part: give some."
        raise ValueError(msg)
    if not bad and false_alarms is None:
        msg = "Without pictures of bad parts, the threshold needs --false-alarms (false_alarms)."
        raise ValueError(msg)
    if false_alarms is not None and good < needed_pictures(false_alarms):
        msg = (
            f"{good} pictures of good parts cannot promise a fraction of {false_alarms:g} false alarms: give "
            f"{needed_pictures(false_alarms)} or more, or allow 1 / {good + 1}."
        )
        raise ValueError(msg)
    if recall is not None and bad < needed_pictures(1 - recall):
        msg = (
            f"{bad} pictures of bad parts cannot promise a recall of {recall:g}: give {needed_pictures(1 - recall)} or "
            f"more, or ask for {bad} / {bad + 1}."
        )
        raise ValueError(msg)


def needed_pictures(rate: float) -> int:
    """Return how many pictures it takes until a new part is beyond the last of them with at most this probability."""
    return math.ceil((1 - rate) / rate - _ROUNDING)


def choose_threshold(
    good: Scores, bad: Scores, false_alarms: float | None = None, recall: float | None = None
) -> tuple[float, str]:
    """Return a threshold and what it promises.

    The promises are conformal: a new part's rank among ``n`` exchangeable ones is uniform, so that it exceeds the score
    of rank ``ceil((n + 1) (1 - a))`` with a probability of at most ``a`` (Papadopoulos et al., ECML 2002).

    Args:
        good: Scores of good parts ``(n,)``.
        bad: Scores of bad parts ``(m,)``.
        false_alarms: Fraction of new good parts that may be called anomalous.
        recall: Fraction of new bad parts that must be called anomalous. Without both, the threshold is the one with the
            best F1 score on these parts.

    Raises:
        ValueError: If :func:`check_pictures` does, or no score could exceed the threshold.
    """
    check_pictures(len(good), len(bad), false_alarms, recall)
    scores = np.unique(np.concatenate([good, bad]))
    if false_alarms is not None:
        rank = math.ceil((len(good) + 1) * (1 - false_alarms) - _ROUNDING)
        threshold = float(np.sort(good)[rank - 1])
        if threshold == scores[-1] == 1:
            msg = (
                f"{int((good == 1).sum())} of {len(good)} good parts have the score 1, the largest of this model, so "
                "that no part could exceed the threshold: train the model on pictures of this line."
            )
            raise ValueError(msg)
        promise = f"good part is called anomalous with a probability of at most {false_alarms:.3g}"
        return threshold, _guarantee(promise, len(good), needed_pictures(false_alarms))
    if recall is not None:
        rank = math.floor((len(bad) + 1) * (1 - recall) + _ROUNDING)
        promise = f"bad part is called anomalous with a probability of at least {recall:.3g}"
        guarantee = _guarantee(promise, len(bad), needed_pictures(1 - recall))
        return _below(float(np.sort(bad)[rank - 1]), scores), guarantee
    return _below(_smallest_of_best_f1(good, bad, scores), scores), "The best F1 score on these pictures; no guarantee."


def _guarantee(promise: str, count: int, needed: int) -> str:
    return f"A new {promise}, if it comes about as these {count} did (it takes {needed} pictures or more)."


def _smallest_of_best_f1(good: Scores, bad: Scores, scores: Scores) -> float:
    """Return the smallest score that is to be anomalous for the best F1 score; the lowest where several are best."""
    found = len(bad) - np.searchsorted(np.sort(bad), scores)
    alarms = len(good) - np.searchsorted(np.sort(good), scores)
    return float(scores[np.argmax(2 * found / (found + alarms + len(bad)))])


def _below(smallest: float, scores: Scores) -> float:
    """Return a threshold halfway between a score that is to exceed it and the next smaller one."""
    upper = np.float32(smallest)
    smaller = scores[scores < upper]
    if not len(smaller):
        return float(np.float32(smallest - _STEP * max(1, abs(smallest))))
    halfway = np.float32((float(smaller[-1]) + float(upper)) / 2)
    return float(halfway if halfway < upper else smaller[-1])


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the probability of what happened ``count`` times in ``total``."""
    z2 = _NORMAL_QUANTILE**2
    centre = (count + z2 / 2) / (total + z2)
    half = _NORMAL_QUANTILE / (total + z2) * math.sqrt(count * (total - count) / total + z2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


class PixelQuantile:
    """A conformal quantile of the pixels of many maps, of which only the largest values are kept.

    Args:
        maps: Number of maps that will come.
        rate: Fraction of the pixels, in (0, 1), that may exceed the quantile.
    """

    def __init__(self, maps: int, rate: float) -> None:
        if not 0 < rate < 1:
            msg = f"pixel_false_alarms is {rate}, but must lie between 0 and 1."
            raise ValueError(msg)
        self._maps, self._rate = maps, rate
        self._size = 0
        self._count = 0
        self._largest = np.empty(0, dtype=np.float32)

    def add(self, anomaly_map: npt.NDArray[np.float32]) -> None:
        """Add a map.

        Raises:
            ValueError: If it has another size than the maps before.
        """
        if self._size not in {0, anomaly_map.size}:
            msg = "The model's maps are of several sizes: calibrate it with pictures of one size."
            raise ValueError(msg)
        self._size = anomaly_map.size
        self._count += anomaly_map.size
        values = np.concatenate([self._largest, anomaly_map.ravel()])
        kept = min(len(values), self._above(self._maps * self._size) + 1)
        self._largest = np.partition(values, len(values) - kept)[len(values) - kept :]

    def compute(self) -> float:
        """Return the quantile; the largest value where there are too few pixels for the rate."""
        return float(np.sort(self._largest)[-1 - min(self._above(self._count), len(self._largest) - 1)])

    def _above(self, count: int) -> int:
        """Return how many of ``count`` pixels exceed the quantile."""
        return max(0, count - math.ceil((count + 1) * (1 - self._rate) - _ROUNDING))

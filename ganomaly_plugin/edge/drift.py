# SPDX-License-Identifier: Apache-2.0
"""Whether the scores of later parts still come from the distribution that a model was calibrated with."""

import math

import numpy as np
import numpy.typing as npt

LEVEL = 0.001
"""Probability of a false warning, in each window of parts whose scores have not changed."""

_TERMS = 100


def kolmogorov_smirnov(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Compare two samples by the largest distance between their empirical distribution functions.

    The p-value is asymptotic, with Stephens' correction for finite samples: with the distance ``D`` and
    ``e = n m / (n + m)``, it is ``2 sum_k (-1)^(k-1) exp(-2 k^2 x^2)`` at ``x = D (sqrt(e) + 0.12 + 0.11 / sqrt(e))``.
    Ties make it larger, so that the test errs on the silent side.

    Args:
        first: Sample ``(n,)``.
        second: Sample ``(m,)``.

    Returns:
        The distance and the p-value, both in [0, 1].
    """
    first, second = np.sort(first), np.sort(second)
    values = np.concatenate([first, second])
    below_first = np.searchsorted(first, values, side="right") / len(first)
    below_second = np.searchsorted(second, values, side="right") / len(second)
    distance = float(np.abs(below_first - below_second).max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    x = distance * (root + 0.12 + 0.11 / root)
    if x < 0.2:  # The series converges slowly there, and its value is 1 to twelve digits.
        return distance, 1.0
    k = np.arange(1, _TERMS + 1)
    p_value = 2 * float(np.sum((-1.0) ** (k - 1) * np.exp(-2 * (k * x) ** 2)))
    return distance, min(max(p_value, 0.0), 1.0)


class DriftMonitor:
    """Compares every window of scores with those of the calibration.

    The windows do not overlap, so that each is tested once.

    Args:
        calibration: Scores of the good parts that the model was calibrated with ``(n,)``.
        window: Number of parts in a window.
    """

    def __init__(self, calibration: npt.NDArray[np.floating], window: int) -> None:
        self._calibration = calibration
        self._window = window
        self._scores: list[float] = []

    def add(self, score: float) -> str | None:
        """Add a score, and return a warning where it completes a window that differs."""
        self._scores.append(score)
        if len(self._scores) < self._window:
            return None
        scores, self._scores = np.array(self._scores), []
        distance, p_value = kolmogorov_smirnov(scores, self._calibration)
        if p_value >= LEVEL:
            return None
        return (
            f"drift: the scores of the last {self._window} parts differ from those of the calibration (median "
            f"{np.median(scores):.4g} instead of {np.median(self._calibration):.4g}, Kolmogorov-Smirnov distance "
            f"{distance:.2f}, p = {p_value:.1g})."
        )

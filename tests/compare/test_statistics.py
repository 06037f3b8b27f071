# SPDX-License-Identifier: Apache-2.0
"""Both intervals in simulations and in known cases, and which model is called better than another."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ganomaly_plugin.compare.metrics import weighted_image_metrics
from ganomaly_plugin.compare.statistics import Interval, draw_weights, estimate, holm, normalise
from ganomaly_plugin.compare.summary import MEAN, UNTUNED, Summary

from .conftest import separated, summarise

UNKNOWN = np.full((1, 1), np.nan)


@pytest.mark.parametrize("n_seeds", [5, 10])
def test_coverage_over_seeds(n_seeds: int) -> None:
    """Of a metric, and of the difference between two models whose values go up and down together."""
    generator = np.random.default_rng(n_seeds)
    covered = []
    for _ in range(1000):
        shared = generator.normal(size=n_seeds)
        values = [0.9 + 0.02 * (shared + generator.normal(size=n_seeds)), 0.8 + 0.02 * shared]
        for found, truth in ((estimate(values[0], UNKNOWN), 0.9), (estimate(values[0] - values[1], UNKNOWN), 0.1)):
            assert found.over_seeds is not None
            covered.append(found.over_seeds.low <= truth <= found.over_seeds.high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("n_seeds", [1, 5])
def test_coverage_over_images(n_seeds: int) -> None:
    """Of the mean AUROC of some linear scores, all of the same images, whose true AUROCs are known."""
    generator = np.random.default_rng(n_seeds)
    labels = np.repeat([0.0, 1.0], 60)
    covered = []
    for _ in range(100):
        directions = generator.normal([1, 0], 0.3, size=(n_seeds, 2))
        distances = directions[:, 0] / np.linalg.norm(directions, axis=1)
        truth = np.mean([NormalDist().cdf(distance / np.sqrt(2)) for distance in distances])
        images = generator.normal(size=(120, 2)) + np.outer(labels, [1, 0])
        weights = normalise(draw_weights(120, 200, generator), labels)
        scores = [images @ direction for direction in directions]
        found = estimate(
            np.array([roc_auc_score(labels, each) for each in scores]),
            np.stack([weighted_image_metrics(each, labels, weights)["image_AUROC"] for each in scores]),
        )
        assert found.over_images is not None
        covered.append(found.over_images.low <= truth <= found.over_images.high)
    assert np.mean(covered) >= 0.92


class TestEstimate:
    """Known cases."""

    def test_one_seed_has_no_deviation(self) -> None:
        found = estimate(np.array([0.7]), UNKNOWN)
        assert (found.std, found.over_images, found.over_seeds, found.p_value) == (None, None, None, None)
        assert str(found) == "0.700"

    def test_four_seeds_are_too_few(self) -> None:
        found = estimate(np.array([0.7, 0.8, 0.9, 0.8]), UNKNOWN)
        assert (found.over_seeds, found.p_value) == (None, None)
        assert str(found) == "0.800 ± 0.082"

    def test_five_seeds(self) -> None:
        """Of variance 0.625: 2.7764 is the 97.5 % quantile of Student's t with four degrees of freedom."""
        found = estimate(np.array([1.0, 1.5, 2.0, 2.5, 3.0]), UNKNOWN)
        error = np.sqrt(0.625 / 5)
        assert found.over_seeds == pytest.approx((2 - 2.7764 * error, 2 + 2.7764 * error), abs=1e-4)

    @pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (0.1, 0.0)])
    def test_seeds_that_change_nothing(self, value: float, p_value: float) -> None:
        found = estimate(np.full(5, value), UNKNOWN)
        assert found.over_seeds == Interval(value, value)
        assert found.p_value == p_value

    def test_holm(self) -> None:
        """The smallest counts times the number of hypotheses, the next times one less, and never less than it."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.8]).tolist() == [1, 1]
        assert holm([]).tolist() == []


class TestWeights:
    """What the bootstrap draws."""

    def test_each_kind_keeps_its_number(self) -> None:
        labels = np.repeat([0.0, 1.0], [70, 30])
        weights = normalise(draw_weights(100, 20, np.random.default_rng(0)), labels)
        assert weights[:, labels == 1].sum(1) == pytest.approx(30)
        assert weights.sum(1) == pytest.approx(100)

    def test_interval_is_as_wide_as_chance(self) -> None:
        """The AUROC of chance has a known standard error (Hanley and McNeil, 1982)."""
        generator = np.random.default_rng(0)
        labels = np.r_[np.zeros(300), np.ones(200)]
        weights = normalise(draw_weights(500, 1000, generator), labels)
        found = weighted_image_metrics(generator.random(500), labels, weights)["image_AUROC"]
        error = np.sqrt((300 + 200 + 1) / (12 * 300 * 200))
        assert found.std() == pytest.approx(error, rel=0.1)


def width(summary: Summary, category: str) -> float:
    """Width of the interval over test images."""
    found = summary.value("digits", category, "A", "image_AUROC")
    assert found is not None
    assert found.over_images is not None
    return found.over_images.high - found.over_images.low


class TestSharedImages:
    """The same images in several seeds or categories are no more images."""

    def test_seeds(self, tmp_path: Path) -> None:
        (scores,) = separated([1.0])
        one = summarise(tmp_path / "one", {("A", 8, 0): scores})
        five = summarise(tmp_path / "five", {("A", 8, seed): scores for seed in range(5)})
        assert width(five, "8") == pytest.approx(width(one, "8"))

    def test_categories(self, tmp_path: Path) -> None:
        (scores,) = separated([1.0])
        summary = summarise(tmp_path, {("A", category, 0): scores for category in (1, 3, 8)})
        assert width(summary, MEAN) == pytest.approx(width(summary, "8"))

    def test_others_narrow_the_interval(self, tmp_path: Path) -> None:
        """Five seeds with images of their own: by the root of five."""
        scores = {("A", 8, seed): separated([1.0], seed)[0] for seed in range(5)}
        shared = summarise(tmp_path / "shared", {("A", 8, seed): scores["A", 8, 0] for seed in range(5)})
        apart = summarise(tmp_path / "apart", scores, images=np.arange(500).reshape(5, 100))
        assert width(apart, "8") == pytest.approx(width(shared, "8") / np.sqrt(5), rel=0.25)

    def test_an_image_that_is_normal_here_and_anomalous_there(self, tmp_path: Path) -> None:
        """Digit 1 beside digit 8 each with the other among the normal ones: what one gains the other loses."""
        (scores,) = separated([0.0])
        mirrored = np.r_[scores[50:], scores[:50]]
        summary = summarise(tmp_path, {("A", 1, 0): scores, ("A", 8, 0): mirrored})
        for result in summary.results[1:]:
            arrays = result.arrays()
            np.savez(result.folder / "scores.npz", **arrays | {"images": np.roll(arrays["images"], 50)})
        assert width(summary, MEAN) == pytest.approx(0, abs=1e-6)
        assert width(summary, "8") > 0.1


class TestBetter:
    """A difference counts over seeds, and with a correction for the number of models."""

    def compare(self, tmp_path: Path, n_seeds: int, *distances: float) -> Summary:
        scores = {}
        for seed in range(n_seeds):
            jitter = 0.1 * np.random.default_rng(seed).normal(size=len(distances))
            found = separated([*(np.array(distances) + jitter)], n=200)
            scores |= {(chr(65 + number), 8, seed): each for number, each in enumerate(found)}
        return summarise(tmp_path, scores)

    def test_too_few_seeds(self, tmp_path: Path) -> None:
        """However far apart the models are on these test images."""
        summary = self.compare(tmp_path, 4, 3.0, 0.5)
        difference = summary.difference("digits", MEAN, "A", "B", "image_AUROC")
        assert difference is not None
        assert difference.over_images is not None
        assert difference.over_images.low > 0
        assert not summary.is_better("digits", MEAN, "A", "B", "image_AUROC")
        assert not summary.leads("digits", "A", "image_AUROC")
        assert summary.pairwise_comparison("A", "B") == (0, 1, 0)

    def test_enough_seeds(self, tmp_path: Path) -> None:
        summary = self.compare(tmp_path, 6, 3.0, 0.5)
        assert summary.is_better("digits", MEAN, "A", "B", "image_AUROC")
        assert not summary.is_better("digits", MEAN, "B", "A", "image_AUROC")
        assert summary.leads("digits", "A", "image_AUROC")
        assert not summary.leads("digits", "B", "image_AUROC")
        assert summary.pairwise_comparison("A", "B") == (1, 0, 0)
        assert summary.pairwise_comparison("B", "A") == (0, 0, 1)

    def test_corrected_for_the_number_of_models(self, tmp_path: Path) -> None:
        """A difference that is significant between two models alone is not among eight."""
        two = self.compare(tmp_path / "two", 5, 1.0, 0.7)
        eight = self.compare(tmp_path / "eight", 5, 1.0, 0.7, *(0.5 + 0.05 * number for number in range(6)))
        for summary in (two, eight):
            difference = summary.difference("digits", MEAN, "A", "B", "image_AUROC")
            assert difference is not None
            assert difference.p_value is not None
            assert difference.p_value < 0.05
        assert two.is_better("digits", MEAN, "A", "B", "image_AUROC")
        assert not eight.is_better("digits", MEAN, "A", "B", "image_AUROC")


def test_mean_without_tuning_categories(tmp_path: Path) -> None:
    """Beside the mean of all, over the same categories for all models; a name of a table says which."""
    scores = {}
    for seed in range(2):
        for category, distances in {1: (0.5, 0.6), 3: (3.0, 0.5), 8: (1.0, 1.1)}.items():
            scores |= {
                (model, category, seed): each
                for model, each in zip("AB", separated(list(distances), seed), strict=True)
            }
    summary = summarise(tmp_path / "runs", scores, A={"tuned_on": {"digits": [3, 5]}})
    assert summary.means("digits") == [MEAN, UNTUNED]
    assert summary.members("digits", UNTUNED) == ["1", "8"]
    for model in "AB":
        parts, mean = (
            [summary.value("digits", name, model, "image_AUROC") for name in names]
            for names in (("1", "8"), (UNTUNED,))
        )
        assert all(parts)
        assert mean[0] is not None
        assert mean[0].mean == pytest.approx(np.mean([part.mean for part in parts if part]))
    assert {row.category for row in summary.rows} == {"1", "3", "8", MEAN, UNTUNED}


def test_tuning_on_all_categories_is_said(tmp_path: Path) -> None:
    """There is no mean without them then."""
    scores = {("A", 8, 0): separated([1.0])[0], ("B", 8, 0): separated([0.9])[0]}
    summary = summarise(tmp_path, scores, A={"tuned_on": {"digits": [8], "mnist": [1]}})
    assert summary.means("digits") == [MEAN]
    assert summary.grid.tuned_on == {"A": {"digits": ["8"], "mnist": ["1"]}, "B": {}}

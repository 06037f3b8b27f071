# SPDX-License-Identifier: Apache-2.0
"""Weighted metrics against scikit-learn and anomalib, and the bootstrap in known cases."""

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ganomaly_plugin.compare.metrics import (
    count_pixels,
    interval,
    over_seeds,
    resample,
    weighted_image_metrics,
    weighted_pixel_metrics,
)


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels that depend on them."""
    generator = np.random.default_rng(0)
    labels = (generator.random(200) < 0.3).astype(float)
    return np.round(generator.normal(labels, 1), 1), labels


class TestImageMetrics:
    """Against scikit-learn."""

    def test_plain(self, scored: tuple[np.ndarray, np.ndarray]) -> None:
        scores, labels = scored
        found = weighted_image_metrics(scores, labels, np.ones((1, 200)))
        assert found["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert found["image_AP"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        best = max(f1_score(labels, scores >= threshold) for threshold in np.unique(scores))
        assert found["image_F1Max"] == pytest.approx(best, abs=1e-12)

    def test_weights_are_repetitions(self, scored: tuple[np.ndarray, np.ndarray]) -> None:
        scores, labels = scored
        weights = resample(labels, 150, np.random.default_rng(1))
        found = weighted_image_metrics(scores, labels, weights)
        for row in (0, 77, 149):
            repeated = np.repeat(np.arange(200), weights[row].astype(int))
            expected = roc_auc_score(labels[repeated], scores[repeated])
            assert found["image_AUROC"][row] == pytest.approx(expected, abs=1e-12)
            expected = average_precision_score(labels[repeated], scores[repeated])
            assert found["image_AP"][row] == pytest.approx(expected, abs=1e-12)


class TestPixelMetrics:
    """Against scikit-learn and anomalib, on maps that find two regions of unlike size more or less."""

    @pytest.fixture
    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(0)
        masks = np.zeros((6, 48, 48), dtype=bool)
        masks[:3, 4:20, 8:30] = True
        masks[1:4, 30:34, 36:41] = True
        return generator.normal(masks * 1.5, 1), masks

    def test_area_under_the_roc_curve(self, maps: tuple[np.ndarray, np.ndarray]) -> None:
        found = weighted_pixel_metrics(count_pixels(*maps), np.ones((1, 6)))
        assert found["pixel_AUROC"] == pytest.approx(roc_auc_score(maps[1].ravel(), maps[0].ravel()), abs=1e-3)

    def test_per_region_overlap(self, maps: tuple[np.ndarray, np.ndarray]) -> None:
        metric = AUPRO(fields=["anomaly_map", "gt_mask"])
        values, masks = (torch.from_numpy(array) for array in maps)
        # anomalib's metric takes values in [0, 1]; the order is all that counts.
        values = (values - values.min()) / (values.max() - values.min())
        metric.update(ImageBatch(image=torch.rand(6, 3, 48, 48), anomaly_map=values, gt_mask=masks))
        found = weighted_pixel_metrics(count_pixels(*maps), np.ones((1, 6)))
        assert found["pixel_AUPRO"] == pytest.approx(float(metric.compute()), abs=5e-3)

    def test_weights_are_repetitions(self, maps: tuple[np.ndarray, np.ndarray]) -> None:
        weights = np.array([[1.0, 0, 2, 1, 1, 1]])
        repeated = [0, 2, 2, 3, 4, 5]
        found = weighted_pixel_metrics(count_pixels(*maps), weights)
        expected = roc_auc_score(maps[1][repeated].ravel(), maps[0][repeated].ravel())
        assert found["pixel_AUROC"] == pytest.approx(expected, abs=1e-3)

    def test_perfect_maps(self) -> None:
        masks = np.zeros((2, 8, 8), dtype=bool)
        masks[0, :3, :3] = True
        found = weighted_pixel_metrics(count_pixels(masks.astype(float), masks), np.ones((1, 2)))
        assert found["pixel_AUROC"] == pytest.approx(1)
        assert found["pixel_AUPRO"] == pytest.approx(1)


class TestBootstrap:
    """What resampling must keep, and how wide it makes intervals."""

    def test_draws_each_kind_among_itself(self, scored: tuple[np.ndarray, np.ndarray]) -> None:
        _, labels = scored
        weights = resample(labels, 50, np.random.default_rng(0))
        assert (weights[:, labels == 1].sum(1) == labels.sum()).all()
        assert (weights.sum(1) == len(labels)).all()

    def test_interval_is_as_wide_as_chance(self) -> None:
        """The AUROC of chance has a known standard error (Hanley and McNeil, 1982)."""
        generator = np.random.default_rng(0)
        labels = np.r_[np.zeros(300), np.ones(200)]
        weights = resample(labels, 1000, generator)
        found = weighted_image_metrics(generator.random(500), labels, weights)["image_AUROC"]
        error = np.sqrt((300 + 200 + 1) / (12 * 300 * 200))
        assert found.std() == pytest.approx(error, rel=0.1)

    def test_over_seeds(self) -> None:
        """Seeds without images' noise give the standard deviation of a mean of seeds drawn with replacement."""
        values = np.repeat(np.array([[0.7], [0.8], [0.9]]), 20000, axis=1)
        means = over_seeds(values, np.random.default_rng(0))
        assert means.mean() == pytest.approx(0.8, abs=1e-3)
        assert means.std() == pytest.approx(np.std([0.7, 0.8, 0.9]) / np.sqrt(3), rel=0.02)

    def test_equal_models_differ_by_nothing(self, scored: tuple[np.ndarray, np.ndarray]) -> None:
        scores, labels = scored
        weights = resample(labels, 200, np.random.default_rng(0))
        one, other = (
            weighted_image_metrics(values, labels, weights)["image_AUROC"] for values in (scores, 3 * scores - 7)
        )
        found = interval(np.zeros(1), over_seeds((one - other)[np.newaxis], np.random.default_rng(0)))
        assert (found.low, found.high) == (0, 0)

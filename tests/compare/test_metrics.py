# SPDX-License-Identifier: Apache-2.0
"""Weighted metrics against scikit-learn and anomalib."""

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ganomaly_plugin.compare.metrics import count_pixels, weighted_image_metrics, weighted_pixel_metrics


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
        weights = np.random.default_rng(1).integers(1, 4, size=(150, 200)).astype(float)
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

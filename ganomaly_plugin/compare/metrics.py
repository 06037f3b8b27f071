# SPDX-License-Identifier: Apache-2.0
"""Metrics of raw anomaly scores, the same under many weightings of the images at once.

A weighting ``(B, N)`` says how much each of ``N`` test images counts in each of ``B`` resamples; a row of ones gives
the plain metric, which equals scikit-learn's.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO
from scipy.ndimage import label
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

Array = npt.NDArray[np.float64]

CHUNK = 100
"""Resamples that are in memory at a time."""
FALSE_POSITIVE_LIMIT = 0.3
"""False-positive rate up to which the per-region overlap is integrated, as the MVTec AD paper has it."""


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return scikit-learn's metrics of raw scores ``(N,)`` and labels ``(N,)``, 1 for anomalous."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        "image_AUROC": float(roc_auc_score(labels, scores)),
        "image_AP": float(average_precision_score(labels, scores)),
        "image_F1Max": float((2 * precision * recall / (precision + recall).clip(min=1e-12)).max()),
    }


def pixel_metrics(maps: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    """Return scikit-learn's area under the ROC curve and anomalib's under the per-region overlap.

    Args:
        maps: Raw anomaly maps ``(N, H, W)``.
        masks: Anomalous pixels, same shape.
    """
    overlap = AUPRO(fields=["anomaly_map", "gt_mask"])
    overlap.update(ImageBatch(image=torch.zeros(len(maps), 3, *maps.shape[1:]), anomaly_map=maps, gt_mask=masks))
    return {
        "pixel_AUROC": float(roc_auc_score(masks.flatten(), maps.flatten())),
        "pixel_AUPRO": float(overlap.compute()),
    }


def weighted_image_metrics(scores: Array, labels: Array, weights: Array) -> dict[str, Array]:
    """Area under the ROC curve, average precision and the best F1 of raw scores.

    Args:
        scores: Raw scores ``(N,)``, higher for anomalous; equal scores count as ties.
        labels: 1 for anomalous, 0 for normal, ``(N,)``.
        weights: Weightings ``(B, N)``, each with some weight on both kinds.

    Returns:
        ``image_AUROC``, ``image_AP`` and ``image_F1Max``, each ``(B,)``.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    metrics: dict[str, list[Array]] = {"image_AUROC": [], "image_AP": [], "image_F1Max": []}
    for part in np.array_split(weights, max(1, len(weights) // CHUNK)):
        ordered = part[:, order]
        positives = np.add.reduceat(ordered * labels[order], starts, axis=1)
        negatives = np.add.reduceat(ordered * (1 - labels[order]), starts, axis=1)
        true, false = positives.cumsum(1), negatives.cumsum(1)
        total = true[:, -1:]
        metrics["image_AUROC"].append(_area(false, true))
        with np.errstate(invalid="ignore"):
            precision = np.where(true > 0, true / (true + false), 0)
        metrics["image_AP"].append((positives / total * precision).sum(1))
        metrics["image_F1Max"].append((2 * true / (true + false + total)).max(1))
    return {name: np.concatenate(values) for name, values in metrics.items()}


class PixelCounts(NamedTuple):
    """How many pixels of each test image reach each of ``T`` thresholds, which fall.

    Attributes:
        true: Anomalous pixels at or above the threshold, ``(N, T)``.
        false: Normal pixels at or above the threshold, ``(N, T)``.
        overlap: Sum over the image's regions of the fraction at or above the threshold, ``(N, T)``.
        regions: Number of regions, ``(N,)``.
    """

    true: Array
    false: Array
    overlap: Array
    regions: Array


def count_pixels(maps: Array, masks: npt.NDArray[np.bool_], n_thresholds: int = 1000) -> PixelCounts:
    """Count the pixels of raw maps ``(N, H, W)`` over thresholds at equal fractions of all pixels, and more at the top.

    Args:
        maps: Raw anomaly maps.
        masks: Anomalous pixels, same shape; connected ones are a region.
        n_thresholds: Number of thresholds.
    """
    # The curves' steepest parts are where few pixels are above the threshold.
    fractions = np.r_[np.geomspace(1e-5, 1, n_thresholds // 2), np.linspace(0, 1, n_thresholds // 2)]
    edges = np.unique(np.quantile(maps, 1 - fractions))

    def reached(values: Array) -> Array:
        return len(values) - np.searchsorted(np.sort(values), edges[::-1], side="left").astype(float)

    rows = []
    for image_map, mask in zip(maps, masks, strict=True):
        regions, n_regions = label(mask, structure=np.ones((3, 3)))
        reached_fractions = [reached(image_map[regions == n]) / (regions == n).sum() for n in range(1, n_regions + 1)]
        overlap = np.sum(reached_fractions, axis=0) if n_regions else np.zeros(len(edges))
        rows.append((reached(image_map[mask]), reached(image_map[~mask]), overlap, float(n_regions)))
    true, false, overlap, numbers = (np.array(column) for column in zip(*rows, strict=True))
    return PixelCounts(true, false, overlap, numbers)


def weighted_pixel_metrics(counts: PixelCounts, weights: Array) -> dict[str, Array]:
    """Area under the pixels' ROC curve, and under the per-region overlap up to a false-positive rate of 0.3.

    Args:
        counts: What :func:`count_pixels` returns.
        weights: Weightings of the images, ``(B, N)``.

    Returns:
        ``pixel_AUROC`` and ``pixel_AUPRO``, each ``(B,)``.
    """
    true, false = weights @ counts.true, weights @ counts.false
    overlap = weights @ counts.overlap / (weights @ counts.regions)[:, np.newaxis]
    rate = false / false[:, -1:]
    limit = FALSE_POSITIVE_LIMIT
    limited = [
        auc(np.r_[0, x[x < limit], limit], np.r_[0, values[x < limit], np.interp(limit, x, values)]) / limit
        for x, values in zip(rate, overlap, strict=True)
    ]
    return {"pixel_AUROC": _area(false, true), "pixel_AUPRO": np.array(limited)}


def _area(false: Array, true: Array) -> Array:
    """Area under curves given by cumulative counts ``(B, T)``, by trapezoids."""
    before_false = np.concatenate([np.zeros_like(false[:, :1]), false[:, :-1]], axis=1)
    before_true = np.concatenate([np.zeros_like(true[:, :1]), true[:, :-1]], axis=1)
    doubled = ((false - before_false) * (true + before_true)).sum(1)
    area: Array = doubled / (2 * false[:, -1] * true[:, -1])
    return area

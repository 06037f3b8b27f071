# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics of raw anomaly scores.

torchmetrics squashes scores outside [0, 1] with a sigmoid, batch by batch, which changes their order; and anomalib's
user-facing scores are clamped, which makes ties. These metrics keep the scores as they are and leave the arithmetic to
scikit-learn.
"""

from collections.abc import Callable
from typing import Any

import torch
from anomalib.metrics import AnomalibMetric
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class _Ranking(Metric):
    """Gather scores ``(B,)`` and binary targets ``(B,)``, and rank them when asked."""

    full_state_update = False
    _compute_ranking: Callable[..., float]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scores: list[torch.Tensor]
        self.targets: list[torch.Tensor]
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add one batch of scores and targets."""
        del kwargs  # For the type checker: anomalib's update, which calls this one, takes some.
        scores, targets = args
        self.scores.append(scores.detach().flatten())
        self.targets.append(targets.detach().flatten())

    def compute(self) -> torch.Tensor:
        """Return the metric over all batches, NaN unless both normal and anomalous samples were seen."""
        targets = dim_zero_cat(self.targets).cpu().numpy()
        if targets.all() or not targets.any():
            return torch.tensor(float("nan"))
        scores = dim_zero_cat(self.scores).double().cpu().numpy()
        return torch.tensor(float(type(self)._compute_ranking(targets, scores)), dtype=torch.float64)


class AUROC(AnomalibMetric, _Ranking):
    """Area under the receiver operating characteristic, by scikit-learn."""

    _compute_ranking = staticmethod(roc_auc_score)


class AveragePrecision(AnomalibMetric, _Ranking):
    """Average precision, by scikit-learn."""

    _compute_ranking = staticmethod(average_precision_score)

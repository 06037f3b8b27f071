# SPDX-License-Identifier: Apache-2.0
"""From raw scores to user-facing ones, labels and masks."""

import logging
import math
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torchmetrics.utilities.data import dim_zero_cat

logger = logging.getLogger(__name__)

SMALLEST_THRESHOLD = 1e-6
"""Keeps ``s / (s + t)`` finite where every validation score is zero, in half precision too."""
ROUNDING = 1e-9
"""Keeps ranks that are whole numbers but for the rounding of their factors from being rounded up."""


class OneClassThreshold(F1AdaptiveThreshold):
    """The F1-optimal threshold, or a quantile of the normal scores where validation holds no anomaly.

    A score above the threshold is anomalous. The F1-optimal one is halfway between the smallest score that is to be
    anomalous and the next smaller one. The quantile is conformal: of ``n`` normal scores it takes the one of rank
    ``ceil((n + 1) * normal_quantile)``, so that a new normal score exceeds it with a probability of at most
    ``1 - normal_quantile`` (Papadopoulos et al., ECML 2002); where ``n`` is too small for that, it takes the largest.

    Args:
        normal_quantile: Fraction of the normal scores, in (0, 1], that must not exceed the threshold.
        **kwargs: Arguments of anomalib's ``F1AdaptiveThreshold``.
    """

    def __init__(self, normal_quantile: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normal_quantile = normal_quantile

    def compute(self) -> torch.Tensor:
        """Return the threshold, a scalar in the unit of the scores, NaN without scores."""
        scores = dim_zero_cat(self.preds).flatten()
        if not len(scores):
            return scores.new_tensor(float("nan"))
        if self._has_anomalous_samples():
            smallest = super().compute()  # anomalib's search calls scores anomalous that equal its threshold.
            normal = scores[scores < smallest]
            # Scores are not negative, so that zero is below all of them where everything is to be anomalous.
            return ((normal.max() if len(normal) else 0) + smallest) / 2
        rank = math.ceil((len(scores) + 1) * self.normal_quantile - ROUNDING)
        if rank > len(scores) and self.normal_quantile < 1:
            logger.warning(
                "%d normal validation scores are too few for a threshold that %g of them exceed: the threshold is the "
                "largest of them. Give %d or more, or set normal_quantile of the post-processor.",
                len(scores),
                1 - self.normal_quantile,
                math.ceil(self.normal_quantile / (1 - self.normal_quantile) - ROUNDING),
            )
        # torch.quantile refuses more than 16 million values, which a few hundred anomaly maps hold.
        return scores.kthvalue(min(rank, len(scores))).values


class OneClassPostProcessor(PostProcessor):
    """Map raw scores ``s`` to ``s / (s + t)``, where ``t`` is the threshold learnt on the validation images.

    The result lies in [0, 1], is 0.5 at the threshold and grows strictly with ``s``, so nothing is clamped and no
    ranking is lost. ``t`` is F1-optimal where the validation images hold anomalies; where they do not, it is a
    quantile of the normal scores, and for the map a quantile of the normal images' pixels.

    Args:
        normal_quantile: Fraction of the normal validation images to call normal where none is anomalous, in (0, 1].
        normal_pixel_quantile: The same for their pixels.
        enable_threshold_matching: Whether the map takes the threshold of the scores where there are no masks, as
            anomalib's does. Its values are of another kind than most scores, so by default it has its quantile.
        **kwargs: Arguments of anomalib's ``PostProcessor``, sensitivities among them: with sensitivity ``q`` an image
            is anomalous if its user-facing score exceeds ``1 - q``.

    Raises:
        ValueError: If a quantile is outside (0, 1].
    """

    def __init__(
        self,
        normal_quantile: float = 0.95,
        normal_pixel_quantile: float = 0.995,
        enable_threshold_matching: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(enable_threshold_matching=enable_threshold_matching, **kwargs)
        for name, value in (("normal_quantile", normal_quantile), ("normal_pixel_quantile", normal_pixel_quantile)):
            if not 0 < value <= 1:
                msg = f"{name} is {value}; it is a fraction of the normal validation scores, so choose one in (0, 1]."
                raise ValueError(msg)
        self.normal_quantile = normal_quantile
        self.normal_pixel_quantile = normal_pixel_quantile
        self._step: int | None = None
        self._build_threshold_metrics()

    def _build_threshold_metrics(self) -> None:
        self._image_threshold_metric = OneClassThreshold(
            self.normal_quantile, fields=["pred_score", "gt_label"], strict=False
        )
        self._pixel_threshold_metric = OneClassThreshold(
            self.normal_pixel_quantile, fields=["anomaly_map", "gt_mask"], strict=False
        )

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        # Version 0.1.0 kept enable_threshold_matching=True, whatever was asked for, and took the quantile.
        stock = (key for key in super()._checkpoint_config_keys if key != "enable_threshold_matching")
        return (*stock, "matches_thresholds", "normal_quantile", "normal_pixel_quantile")

    @property
    def matches_thresholds(self) -> bool:
        """``enable_threshold_matching``, as checkpoints keep it."""
        return self.enable_threshold_matching

    @matches_thresholds.setter
    def matches_thresholds(self, value: bool) -> None:
        self.enable_threshold_matching = value

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the configuration of a checkpoint."""
        super().load_checkpoint_config(config)
        self._build_threshold_metrics()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Gather the raw scores and maps of one batch, but for those of an untrained network's sanity check."""
        if trainer is not None and trainer.sanity_checking:
            return
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        # Normal images without masks still say how high the map is where nothing is anomalous.
        image: Any = outputs.image
        maps, labels = outputs.anomaly_map, outputs.gt_label
        if not self.enable_thresholding or self.enable_threshold_matching:
            return
        if outputs.gt_mask is not None or maps is None or labels is None:
            return
        normal = ~labels  # Perhaps none, but processes that train together compute the metric together.
        masks = torch.zeros_like(maps[normal], dtype=torch.bool)
        self._pixel_threshold_metric.update(ImageBatch(image=image[normal], anomaly_map=maps[normal], gt_mask=masks))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the thresholds, and note whose weights they belong to."""
        super().on_validation_epoch_end(trainer, pl_module)
        if trainer is not None and not trainer.sanity_checking:
            self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where the thresholds are those of earlier weights."""
        del pl_module
        if self._step is not None and self._step != trainer.global_step:
            logger.warning(
                "The threshold was computed after step %d of %d, so it does not belong to the last weights. Validate "
                "them (`anomalib validate`, or trainer.check_val_every_n_epoch: 1).",
                self._step,
                trainer.global_step,
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where no validation has set a threshold."""
        del trainer, pl_module
        if self.image_threshold.isnan():
            logger.warning(
                "No threshold was learnt, since no validation ran: scores rank as they should, but labels and masks "
                "mean nothing. Train with a validation split (e.g. val_split_mode: from_train), or load a checkpoint."
            )

    on_predict_start = on_test_start

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None,
        norm_min: torch.Tensor,
        norm_max: torch.Tensor,
        threshold: torch.Tensor,
    ) -> torch.Tensor | None:
        del norm_min, norm_max  # The ratio needs no range.
        if preds is None:
            return None
        threshold = torch.where(threshold.isnan(), torch.ones_like(threshold), threshold)
        threshold = threshold.clamp(min=SMALLEST_THRESHOLD)
        return preds / (preds + threshold)

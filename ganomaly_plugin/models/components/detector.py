# SPDX-License-Identifier: Apache-2.0
"""What the detectors of the package share as anomalib models: scoring, defaults, checkpoints, and honest losses."""

from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC as PixelAUROC
from anomalib.metrics import Evaluator, F1Score
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torchvision.transforms.v2 import Compose, Normalize, Resize

from ganomaly_plugin.models.components.export import SelfDescribingExport
from ganomaly_plugin.models.components.metrics import AUROC, AveragePrecision
from ganomaly_plugin.models.components.post_processor import OneClassPostProcessor
from ganomaly_plugin.models.components.pre_processor import AntialiasedPreProcessor
from ganomaly_plugin.models.components.visualizer import ReconstructionVisualizer

CHECK_INTERVAL = 10
"""Batches between two looks at the losses on an accelerator, where each look waits for the device."""


class OneClassDetector(SelfDescribingExport):
    """Mixin for anomalib models whose torch model is a :class:`~.detector_model.DetectorModel`, named ``model``.

    Logged in validation: ``val_score``, the mean raw score of the normal images (monitor with mode ``min``), and
    ``image_AUROC`` (mode ``max``; NaN unless validation holds both classes).
    """

    architecture: tuple[str, ...] = ("image_size", "input_channels")
    """Hyper-parameters that a checkpoint and the model it is loaded into must share."""
    _rng_state: torch.Tensor | None = None

    def check_input_size(self, image_size: tuple[int, int]) -> None:
        """See that the pre-processor makes images of the networks' size; call at the end of the construction.

        Raises:
            ValueError: If it does not.
        """
        if self.input_size is not None and tuple(self.input_size) != image_size:
            msg = (
                f"The pre-processor makes images of {tuple(self.input_size)} pixels, but image_size is {image_size}: "
                "give both the same size."
            )
            raise ValueError(msg)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:
        """Score one validation batch and log the mean raw score of its normal images."""
        del batch_idx
        scores: Any = self._score(batch).pred_score
        if batch.gt_label is not None and not batch.gt_label.all():
            normal_scores = scores[~batch.gt_label]
            self.log(
                "val_score",
                normal_scores.mean(),
                on_epoch=True,
                prog_bar=True,
                batch_size=len(normal_scores),
                sync_dist=True,
            )
        return batch

    def test_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:
        """Score one test batch."""
        del batch_idx
        return self._score(batch)

    def predict_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> ImageBatch:
        """Score one batch."""
        del batch_idx, dataloader_idx
        return self._score(batch)

    def _score(self, batch: ImageBatch) -> ImageBatch:
        """Add scores and maps to a batch, and ``raw_score``, which no post-processing touches.

        Raises:
            ValueError: If a score is not finite; the message names the images.
        """
        # The difference of two nearly equal codes would drown in the rounding of a 16-bit type.
        with torch.autocast(self.device.type, enabled=False):
            predictions = self.model(batch.image)
        finite = predictions.pred_score.isfinite()
        if not finite.all():
            msg = f"The score of {_names(batch, ~finite)} is not finite: check the pixels, or train the model anew."
            raise ValueError(msg)
        batch.raw_score = predictions.pred_score  # type: ignore[attr-defined]
        return batch.update(**predictions._asdict())

    def looks_at_losses(self, batch_idx: int) -> bool:
        """Whether this batch's losses are worth waiting for."""
        return self.device.type == "cpu" or batch_idx % CHECK_INTERVAL == 0

    def log_losses(self, losses: dict[str, torch.Tensor], batch: ImageBatch, batch_idx: int) -> None:
        """Log the losses' means over the epoch.

        Raises:
            ValueError: If one is not finite; the message says which, where and what to try.
        """
        if self.looks_at_losses(batch_idx):
            self._check_finite(losses, batch, batch_idx)
        images: Any = batch.image
        self.log_dict(losses, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)

    def _check_finite(self, losses: dict[str, torch.Tensor], batch: ImageBatch, batch_idx: int) -> None:
        values = torch.stack(list(losses.values())).tolist()
        broken = {name: value for name, value in zip(losses, values, strict=True) if not abs(value) < float("inf")}
        if not broken:
            return
        images: Any = batch.image
        bad_pixels = ~images.isfinite().flatten(1).all(1)
        if bad_pixels.any():
            advice = f"The pixels of {_names(batch, bad_pixels)} are not finite: repair or remove them."
        else:
            rate = self.hparams["lr"]
            advice = f"Try a learning rate below {rate}, trainer.gradient_clip_val: 1 or trainer.precision: 32-true."
        msg = f"Training diverged in epoch {self.current_epoch}, batch {batch_idx}: {broken}. {advice}"
        raise ValueError(msg)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or architecture before its weights are touched.

        Raises:
            ValueError: If the checkpoint does not fit; the message says what it holds and what was expected.
        """
        saved = checkpoint["hyper_parameters"]
        differing = [
            f"{name} is {saved[name]} in the checkpoint and {self.hparams[name]} in the model"
            for name in self.architecture
            if name in saved and saved[name] != self.hparams[name]
        ]
        same_networks = _networks(checkpoint["state_dict"]) == _networks(self.state_dict())
        if not saved.keys() >= {*self.architecture} or not (differing or same_networks):
            kind = "anomalib's own Ganomaly" if "model.discriminator" in str(checkpoint["state_dict"].keys()) else "it"
            name = type(self).__name__
            msg = (
                f"This is not a checkpoint of ganomaly_plugin.{name}: {kind} has other networks. Load it with the "
                f"model that wrote it, or train {name} anew."
            )
            raise ValueError(msg)
        if differing:
            msg = f"The checkpoint does not fit this model: {'; '.join(differing)}. Build the model as it was trained."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        self._rng_state = checkpoint["torch_rng_state"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers, so that a resumed training shuffles as an uninterrupted one."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["torch_rng_state"] = torch.get_rng_state()

    def on_fit_start(self) -> None:
        """Go on with the random numbers of the checkpoint, if training resumes from one."""
        super().on_fit_start()
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state.cpu())
            self._rng_state = None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No arguments: anomalib would let them win over the user's."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """One-class: trained on normal images only."""
        return LearningType.ONE_CLASS

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return a pre-processor that resizes to ``image_size`` (64x64 by default) and scales [0, 1] to [-1, 1]."""
        return AntialiasedPreProcessor(
            transform=Compose(
                [
                    Resize(image_size or (64, 64), antialias=True),
                    Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
                ]
            )
        )

    def configure_post_processor(self) -> PostProcessor:
        """Return the post-processor that maps raw scores to [0, 1) with 0.5 at the threshold."""
        return OneClassPostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return an evaluator with image AUROC in validation, and AUROC, average precision and F1 in test."""
        return Evaluator(
            val_metrics=[AUROC(fields=["raw_score", "gt_label"], prefix="image_")],
            test_metrics=[
                AUROC(fields=["raw_score", "gt_label"], prefix="image_"),
                AveragePrecision(fields=["raw_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                PixelAUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> Visualizer:
        """Return the visualiser that draws input, reconstruction, map and mask side by side."""
        return ReconstructionVisualizer()


def to_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of images given by one side of a square, or by both, perhaps in a list from YAML."""
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _networks(state: dict[str, Any]) -> set[str]:
    """Names of the networks' parameters and buffers, without what anomalib adds."""
    added = {"evaluator", "post_processor", "pre_processor", "visualizer"}
    return {name for name in state if name.partition(".")[0] not in added}


def _names(batch: ImageBatch, chosen: torch.Tensor) -> str:
    """Name the chosen images of a batch by their paths, or by their places where they have none."""
    paths = batch.image_path or [f"image {index} of the batch" for index in range(len(chosen))]
    return ", ".join(str(path) for path, choose in zip(paths, chosen.tolist(), strict=True) if choose)

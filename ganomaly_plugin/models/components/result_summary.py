# SPDX-License-Identifier: Apache-2.0
"""What the command line says at the end of a test, which ends a training as well."""

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback, Trainer
from rich.console import Console


class ResultSummary(Callback):
    """Prints how good a model is on the test images, where its pictures are, and the command that goes on from there.

    Args:
        can_be_exported: Whether the model has exports.
    """

    def __init__(self, can_be_exported: bool) -> None:
        self.can_be_exported = can_be_exported
        self._counts = torch.zeros(2, 2)
        """Test images by label, normal or anomalous, and by predicted label."""

    def on_test_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Start to count."""
        del trainer
        self._counts = torch.zeros(2, 2, device=pl_module.device)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: ImageBatch, *args: Any, **kwargs: Any
    ) -> None:
        """Count the images of one batch, after the post-processor has labelled them."""
        del trainer, pl_module, args, kwargs
        if outputs.gt_label is not None and outputs.pred_label is not None:
            labels: tuple[Any, ...] = (outputs.gt_label.long(), outputs.pred_label.long())
            self._counts.index_put_(labels, self._counts.new_ones(()), accumulate=True)

    def on_test_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Add up the counts of all processes."""
        del pl_module
        self._counts = trainer.strategy.reduce(self._counts, reduce_op="sum")

    def teardown(self, trainer: Trainer, pl_module: AnomalibModule, stage: str) -> None:
        """Print the summary below Lightning's table of metrics."""
        if stage == "test" and trainer.is_global_zero:
            console = Console()
            console.print()
            for name, value in self._describe(trainer, pl_module).items():
                console.print(f"{name:<13}{value}", soft_wrap=True, markup=False, highlight=False)

    def _describe(self, trainer: Trainer, pl_module: AnomalibModule) -> dict[str, str]:
        (passed, rejected), (missed, found) = self._counts.int().tolist()
        lines = {}
        auroc = float(trainer.callback_metrics.get("image_AUROC", float("nan")))
        unknown = auroc != auroc
        lines["image AUROC"] = "not known, since the test images are of one kind" if unknown else f"{auroc:.3f}"
        threshold = float(getattr(pl_module.post_processor, "image_threshold", float("nan")))
        if threshold == threshold:
            lines["threshold"] = f"{threshold:.4g} as a raw score, 0.5 as a score between 0 and 1"
            lines["rejected"] = f"{rejected} of {passed + rejected} normal test images"
            if missed + found:
                lines["found"] = f"{found} of {missed + found} anomalous test images"
        pictures = getattr(pl_module.visualizer, "output_dir", None) or Path(trainer.default_root_dir) / "images"
        if Path(pictures).is_dir():  # Perhaps those of the training, where this test draws none.
            lines["pictures"] = _relative(pictures)
        checkpoint = trainer.ckpt_path or getattr(trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint:
            lines["checkpoint"] = _relative(checkpoint)
            lines["next"] = shlex.join(self._next_command(Path(trainer.default_root_dir), Path(checkpoint)))
        return lines

    def _next_command(self, results: Path, checkpoint: Path) -> list[str]:
        """Return the command that scores new pictures, or that makes the file which a device needs for it."""
        exported = results / "weights" / "openvino" / "model.xml"
        if exported.exists() and exported.stat().st_mtime >= checkpoint.stat().st_mtime:
            return [_program("ganomaly-edge"), "predict", _relative(exported), "PICTURES"]
        anomalib = _program("anomalib")
        model = ["--config", _relative(results / "config.yaml"), "--ckpt_path", _relative(checkpoint)]
        if self.can_be_exported and find_spec("openvino"):
            return [anomalib, "export", *model, "--export_type", "openvino", "--export_root", _relative(results)]
        return [anomalib, "predict", *model, "--data", "PICTURES"]


def _program(name: str) -> str:
    """Return how to start a command of this environment, also where it is not activated."""
    return name if which(name) else _relative(Path(sys.executable).with_name(name))


def _relative(path: str | Path) -> str:
    """Shorten a path inside of the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative

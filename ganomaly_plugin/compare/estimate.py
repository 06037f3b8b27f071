# SPDX-License-Identifier: Apache-2.0
"""How long a run will take, from a few of its batches."""

import logging
import tempfile
import warnings
from math import ceil, inf
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.profilers import SimpleProfiler

from ganomaly_plugin.compare.grid import Run
from ganomaly_plugin.compare.run import build_datamodule, build_engine, build_model

BATCHES = 3
"""Batches that are timed; the first one does not count."""


class Estimate(NamedTuple):
    """Epochs of a training, and seconds of training and test; infinite where nothing bounds them."""

    epochs: float
    seconds: float


class _Probe(Callback):
    """Reads how long the trainer is about to train, and stops it after some batches."""

    def __init__(self) -> None:
        self.epochs = inf
        self.max_steps = inf
        self.max_seconds = inf
        self.batches_per_epoch = 0.0
        self.steps_per_batch = 1.0
        self.seen = 0

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Read the trainer's limits, which the model and the trainer have completed by now."""
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            self.epochs = trainer.max_epochs
        if trainer.max_steps >= 0:
            self.max_steps = trainer.max_steps
        self.batches_per_epoch = trainer.num_training_batches
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        self.max_seconds = min((timer.time_remaining() or inf for timer in timers), default=inf)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop after some batches; each may be several steps of the optimisers, which ``max_steps`` counts."""
        self.seen += 1
        self.steps_per_batch = trainer.global_step / self.seen
        trainer.should_stop = self.seen >= BATCHES

    def batches(self) -> float:
        """Return how many batches the whole training has."""
        by_steps = self.max_steps / self.steps_per_batch if self.steps_per_batch else inf
        return min(self.epochs * self.batches_per_epoch, by_steps)


def estimate(run: Run) -> Estimate:
    """Train and test a few batches as the run's own trainer does, and extrapolate to the end of its training.

    Starting the process, exports, and work between epochs are not included.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    model, datamodule = build_model(run), build_datamodule(run)
    profiler, probe = SimpleProfiler(), _Probe()
    changes = {"limit_val_batches": 1, "limit_test_batches": BATCHES, "min_epochs": 0, "min_steps": 0}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = build_engine(folder, [probe], run.trainer | changes | {"profiler": profiler})
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule, verbose=False)
    durations = {name.rpartition(".")[2]: times for name, times in profiler.recorded_durations.items()}
    training, test = (
        sum(times[1:] or times) / max(1, len(times[1:] or times))
        for times in (durations.get("run_training_batch", []), durations["test_step"])
    )
    batches = probe.batches()
    epochs = ceil(batches / probe.batches_per_epoch) if batches < inf else inf
    tests = _limited(len(datamodule.test_dataloader()), run.trainer.get("limit_test_batches"))
    tests *= epochs if run.every_epoch else 1
    return Estimate(epochs, min(batches * training, probe.max_seconds) + tests * test)


def _limited(batches: int, limit: float | None) -> float:
    """Return how many batches are left of Lightning's limits: a number of them, or a fraction."""
    if limit is None:
        return batches
    return batches * limit if isinstance(limit, float) else min(batches, limit)

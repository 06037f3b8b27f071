# SPDX-License-Identifier: Apache-2.0
"""How long a run will take, from a few of its batches."""

import logging
import tempfile
import time
import warnings
from typing import Any

from lightning.pytorch import Callback

from ganomaly_plugin.compare.grid import Run
from ganomaly_plugin.compare.run import build_datamodule, build_engine, build_model

BATCHES = 3
"""Batches that are timed; the first one does not count."""


class _Watch(Callback):
    """Takes the time from the start to the end of each batch."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.test: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.training.append(time.perf_counter() - self._start)

    def on_test_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_test_batch_end(self, *_: Any) -> None:
        self.test.append(time.perf_counter() - self._start)


def estimate_seconds(run: Run) -> float:
    """Train and test a few batches, and extrapolate.

    Starting the process, exports, and work between epochs are not included.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    model, datamodule = build_model(run), build_datamodule(run)
    watch = _Watch()
    limits = {"limit_train_batches": BATCHES, "limit_val_batches": 1, "limit_test_batches": BATCHES}
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(folder, watch, run.trainer | limits | {"max_epochs": 1})
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule, verbose=False)
    own_epochs = (model.trainer_arguments or {}).get("max_epochs")
    epochs = own_epochs or run.trainer.get("max_epochs", 1)
    steps, tests = len(datamodule.train_dataloader()), len(datamodule.test_dataloader())
    tests *= epochs if run.every_epoch else 1
    training, test = (sum(times[1:]) / max(1, len(times) - 1) for times in (watch.training, watch.test))
    return float(epochs * steps * training + tests * test)

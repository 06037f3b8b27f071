# SPDX-License-Identifier: Apache-2.0
"""How long a cell will take, from a few of its batches."""

import logging
import tempfile
import time
import warnings
from typing import Any

from lightning.pytorch import Callback

from ganomaly_plugin.compare.cell import build_datamodule, build_engine, build_model
from ganomaly_plugin.compare.grid import Cell

BATCHES = 3
"""Batches that are tried; the first one does not count."""


class _Watch(Callback):
    """Takes the time from the start to the end of each batch."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.test: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_test_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.training.append(time.perf_counter() - self._start)

    def on_test_batch_end(self, *_: Any) -> None:
        self.test.append(time.perf_counter() - self._start)


def estimate_seconds(cell: Cell) -> float:
    """Train and test a few batches, and extrapolate.

    Starting the process, exports, and whatever a model does between epochs are not in it.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    model, datamodule = build_model(cell), build_datamodule(cell)
    watch = _Watch()
    limits = {"limit_train_batches": BATCHES, "limit_val_batches": 1, "limit_test_batches": BATCHES}
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(folder, watch, cell.trainer | limits | {"max_epochs": 1})
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule, verbose=False)
    own_epochs = (model.trainer_arguments or {}).get("max_epochs")
    epochs = own_epochs or cell.trainer.get("max_epochs", 1)
    steps, tests = len(datamodule.train_dataloader()), len(datamodule.test_dataloader())
    training = sum(watch.training[1:]) / max(1, len(watch.training) - 1)
    test = sum(watch.test[1:]) / max(1, len(watch.test) - 1)
    return float(epochs * steps * training + tests * test)

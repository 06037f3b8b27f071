# SPDX-License-Identifier: Apache-2.0
"""How long a run will take, from a few of its batches."""

import logging
import tempfile
import warnings

from lightning.pytorch.profilers import SimpleProfiler

from ganomaly_plugin.compare.grid import Run
from ganomaly_plugin.compare.run import build_datamodule, build_engine, build_model

BATCHES = 3
"""Batches that are timed; the first one does not count."""


def estimate_seconds(run: Run) -> float:
    """Train and test a few batches, and extrapolate.

    Starting the process, exports, and work between epochs are not included.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    model, datamodule = build_model(run), build_datamodule(run)
    profiler = SimpleProfiler()
    limits = {"limit_train_batches": BATCHES, "limit_val_batches": 1, "limit_test_batches": BATCHES}
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(folder, [], run.trainer | limits | {"max_epochs": 1, "profiler": profiler})
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule, verbose=False)
    own_epochs = (model.trainer_arguments or {}).get("max_epochs")
    epochs = own_epochs or run.trainer.get("max_epochs", 1)
    steps, tests = len(datamodule.train_dataloader()), len(datamodule.test_dataloader())
    tests *= epochs if run.every_epoch else 1
    durations = {name.rpartition(".")[2]: times for name, times in profiler.recorded_durations.items()}
    training, test = (
        sum(times[1:]) / max(1, len(times) - 1)
        for times in (durations.get("run_training_batch", []), durations["test_step"])
    )
    return float(epochs * steps * training + tests * test)

# SPDX-License-Identifier: Apache-2.0
"""Time one training step: anomalib's Ganomaly, the official code's order of work, and ours.

Each variant lives in a process of its own; the processes take turns, a few steps at a time, so that other load on the
machine affects all alike. Steps of the Lightning models are timed from batch start to batch end inside a trainer, so
logging counts. At the end one epoch over the scikit-learn digits through anomalib's engine is timed for anomalib's
model and ours, so that data loading, pre-processing and validation count too.

    python -m benchmarks.training_step [--sizes 32 64] [--rounds 8] [--steps 4] [--output results.json]
"""

import argparse
import json
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.models import Ganomaly
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from pandas import DataFrame

from benchmarks.official_ganomaly import OfficialGANomaly
from ganomaly_plugin import Digits, GANomaly
from ganomaly_plugin.compare.run import build_engine

BATCH_SIZE = 64
CHANNELS = 3
FLOAT32 = ("anomalib", "official", "ours", "ours without averaging")
BF16 = "ours bf16-mixed"


class Stopwatch(Callback):
    """Takes the milliseconds of each batch."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.milliseconds.append((time.perf_counter() - self.start) * 1e3)


def build_stepper(variant: str, size: int) -> Callable[[int], list[float]]:
    """Return a function that trains ``n`` steps of a variant at ``size`` pixels and returns their milliseconds."""
    images = torch.rand(BATCH_SIZE, CHANNELS, size, size) * 2 - 1
    if variant == "official":
        official = OfficialGANomaly(size, CHANNELS)

        def run_official(n_steps: int) -> list[float]:
            times = []
            for _ in range(n_steps + 1):
                start = time.perf_counter()
                official.step(images)
                times.append((time.perf_counter() - start) * 1e3)
            return times[1:]

        return run_official
    bare: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}
    if variant == "anomalib":
        pre_processor = GANomaly.configure_pre_processor((size, size))
        model: Any = Ganomaly(batch_size=BATCH_SIZE, pre_processor=pre_processor, **bare)
        model.pre_processor = None  # The batches are ready; anomalib's model only reads the size from it.
    else:
        average = variant != "ours without averaging"
        model = GANomaly(image_size=size, average_weights=average, pre_processor=False, **bare)

    def run(n_steps: int) -> list[float]:
        stopwatch = Stopwatch()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision="bf16-mixed" if variant == BF16 else "32-true",
            callbacks=[stopwatch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # One batch more than is counted: the first builds what later steps reuse.
        batches: Any = [ImageBatch(image=images.clone()) for _ in range(n_steps + 1)]
        trainer.fit(model, train_dataloaders=torch.utils.data.DataLoader(batches, batch_size=None))
        return stopwatch.milliseconds[1:]

    return run


def worker(variant: str, size: int, pipe: Connection) -> None:
    """Serve timings of one variant until told to stop, then report the process's peak memory."""
    warnings.filterwarnings("ignore")
    stepper = build_stepper(variant, size)
    while n_steps := pipe.recv():
        pipe.send(stepper(n_steps))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def time_steps(size: int, rounds: int, n_steps: int) -> dict[str, dict[str, float]]:
    """Time all variants in turns and return milliseconds, ratios to the official order and megabytes."""
    # Where the processor has no bf16 arithmetic, emulating it takes minutes and says nothing.
    variants = (*FLOAT32, BF16) if torch.cpu._is_avx512_bf16_supported() else FLOAT32
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for variant in variants:
        pipe, far_end = context.Pipe()
        context.Process(target=worker, args=(variant, size, far_end), daemon=True).start()
        pipe.send(1)
        pipe.recv()  # Built and warm before the next one starts.
        pipes[variant] = pipe
    timings: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, pipe in pipes.items():
            pipe.send(n_steps)
            timings[variant] += pipe.recv()
    results = {}
    for variant, pipe in pipes.items():
        pipe.send(0)
        times = timings[variant]
        results[variant] = {
            "milliseconds": statistics.median(times), "fastest": min(times), "megabytes": pipe.recv(),
            "speed_up": statistics.median(timings["official"]) / statistics.median(times),
        }  # fmt: skip
    return results


def time_epoch(model: Any) -> float:
    """Return the seconds of the second epoch over the digits, data loading, logging and validation included."""
    profiler = SimpleProfiler()
    with tempfile.TemporaryDirectory() as root:
        engine = build_engine(root, [], {"max_epochs": 2, "accelerator": "cpu", "profiler": profiler, "logger": True})
        engine.fit(model, datamodule=Digits(root=Path(root) / "digits", train_batch_size=BATCH_SIZE))
    return profiler.recorded_durations["run_training_epoch"][1]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of each variant in each round")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "training_step.json")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    report: dict[str, Any] = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": BATCH_SIZE,
        "steps": {size: time_steps(size, arguments.rounds, arguments.steps) for size in arguments.sizes},
    }
    for size, results in report["steps"].items():
        print(f"\n{size} px\n{DataFrame(results).T.round(2)}")
    pre_processor = GANomaly.configure_pre_processor((32, 32))
    report["epoch_seconds"] = {
        "anomalib": time_epoch(Ganomaly(pre_processor=pre_processor, visualizer=False)),
        "ours": time_epoch(GANomaly(image_size=32, visualizer=False)),
    }
    print(f"\nOne epoch over the digits at 32 px through the engine, in seconds: {report['epoch_seconds']}")
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

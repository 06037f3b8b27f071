# SPDX-License-Identifier: Apache-2.0
"""Latency and throughput of exported models, each in a process of its own, all taking turns.

As ``python -m ganomaly_plugin.compare.timing FORMAT FILE HEIGHT WIDTH`` the process loads one export, reports that, and
then measures for as many seconds as each line of its standard input says. The turns are short, so that other load on
the machine affects all models alike.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BATCH = 8
"""Images at a time when throughput is measured."""
ROUNDS = 10
SECONDS = 0.3
"""Length of one turn."""


class Export(NamedTuple):
    """An exported model and the size ``(H, W)`` of its images in pixels."""

    format: str
    path: Path
    input_size: tuple[int, int]


class Timing(NamedTuple):
    """Milliseconds of one image, and images per second in batches; or the reason why it could not be run."""

    p50: float | None = None
    p95: float | None = None
    images_per_second: float | None = None
    reason: str = ""


class TimedExport(NamedTuple):
    """A line of the table of timings."""

    model: str
    dataset: str
    format: str
    megabytes: float
    p50: float | None
    p95: float | None
    images_per_second: float | None
    reason: str


def measure(exports: Sequence[Export], advance: Callable[[], None]) -> list[Timing]:
    """Measure exports in turns, and return one timing each.

    Args:
        exports: What to measure.
        advance: Called when an export has been loaded, and after each of its turns, ``ROUNDS`` times.
    """
    with ExitStack() as stack:
        workers = []
        for export in exports:
            workers.append(stack.enter_context(_Worker(export)))
            advance()
        for _ in range(ROUNDS):
            for worker in workers:
                worker.take_turn()
                advance()
    return [worker.timing() for worker in workers]


class _Worker:
    """The process that measures one export."""

    def __init__(self, export: Export) -> None:
        height, width = export.input_size
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name]
        self.process = subprocess.Popen(
            [*command, export.format, str(export.path), str(height), str(width)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.single: list[float] = []
        self.batched: list[float] = []
        self.reason = ""
        self._read()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def take_turn(self) -> None:
        """Measure for ``SECONDS``."""
        if self.reason:
            return
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.write(f"{SECONDS}\n")
        self.process.stdin.flush()
        milliseconds = self._read()
        self.single += milliseconds.get("single", [])
        self.batched += milliseconds.get("batched", [])

    def timing(self) -> Timing:
        """Summarise all turns."""
        if self.reason:
            return Timing(reason=self.reason)
        p50, p95 = np.percentile(self.single, [50, 95])
        return Timing(float(p50), float(p95), BATCH / float(np.median(self.batched)) * 1e3)

    def _read(self) -> dict[str, list[float]]:
        assert self.process.stdout is not None  # noqa: S101
        last = ""
        for line in self.process.stdout:
            if line.startswith("{"):  # Libraries print as well.
                answer: dict[str, list[float]] = json.loads(line)
                return answer
            last = line.strip() or last
        self.reason = last or f"the process ended with status {self.process.wait()}"
        return {}


def _load(name: str, path: Path) -> Callable[[np.ndarray], Any]:
    if name == "torch":
        import torch

        model = torch.load(path, weights_only=False, map_location="cpu")["model"].eval()

        def run(images: np.ndarray) -> Any:
            with torch.no_grad():
                return model(torch.from_numpy(images))

        return run
    from ganomaly_plugin.edge.detector import shared_core

    compiled: Callable[[np.ndarray], Any] = shared_core().compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return compiled


def _serve(name: str, path: Path, size: tuple[int, int]) -> None:
    run = _load(name, path)
    images = np.random.default_rng(0).random((BATCH, 3, *size), dtype=np.float32)
    batches = {"single": images[:1], "batched": images}
    for batch in batches.values():
        run(batch)
    print("{}", flush=True)
    for line in sys.stdin:
        milliseconds: dict[str, list[float]] = {name: [] for name in batches}
        for name, batch in batches.items():
            end = time.perf_counter() + float(line) / len(batches)
            while (start := time.perf_counter()) < end or not milliseconds[name]:
                run(batch)
                milliseconds[name].append((time.perf_counter() - start) * 1e3)
        print(json.dumps(milliseconds), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])))

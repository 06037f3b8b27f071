# SPDX-License-Identifier: Apache-2.0
"""How a production line does, in one line a minute."""

import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from ganomaly_plugin.edge.results import ANOMALOUS, ERROR, Result


class LineSummary:
    """Prints rate, latency and fraction anomalous of the parts since the last line, also when none comes.

    Args:
        seconds: Time between two lines.
        count_waiting: Says how many anomalous parts wait for their program.
    """

    def __init__(self, seconds: float, count_waiting: Callable[[], int] = lambda: 0) -> None:
        self._count_waiting = count_waiting
        self._seconds = seconds
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reset()
        self._thread = threading.Thread(target=self._print_regularly, name="ganomaly-edge-summary", daemon=True)
        self._thread.start()

    def add(self, result: Result, latency: float) -> None:
        """Count a result that came ``latency`` seconds after its file was complete."""
        with self._lock:
            self._latencies.append(latency)
            self._anomalous += result.label == ANOMALOUS
            self._errors += result.label == ERROR

    def close(self) -> None:
        """Print the last line."""
        self._closed.set()
        self._thread.join()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._latencies: list[float] = []
        self._anomalous = self._errors = 0

    def _print_regularly(self) -> None:
        while not self._closed.wait(self._seconds):
            self._print()
        self._print()

    def _print(self) -> None:
        with self._lock:
            count = len(self._latencies)
            text = f"{time.strftime('%H:%M:%S')} {count / (time.perf_counter() - self._start):.2f} parts/s"
            if count:
                p50, p95 = np.percentile(self._latencies, [50, 95]) * 1e3
                text += f", latency p50 {p50:.0f} ms, p95 {p95:.0f} ms, {self._anomalous / count:.1%} anomalous"
            if self._errors:
                text += f", {self._errors} not readable"
            self._reset()
        if waiting := self._count_waiting():
            text += f", {waiting} wait for their program"
        print(text, file=sys.stderr, flush=True)

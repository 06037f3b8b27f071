# SPDX-License-Identifier: Apache-2.0
"""Processes that tests start, and that never outlive them."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any


@contextmanager
def running(command: Sequence[str], *, seconds: float = 120, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process and wait for its end; it is killed where the test fails, or after ``seconds``."""
    with subprocess.Popen(command, text=True, **settings) as process:
        watchdog = Timer(seconds, process.kill)
        watchdog.start()
        try:
            yield process
            process.wait()
        finally:
            process.kill()
            watchdog.cancel()

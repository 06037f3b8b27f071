# SPDX-License-Identifier: Apache-2.0
"""Start a program for each result, without waiting for it."""

import json
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ganomaly_plugin.edge.results import Result

AT_A_TIME = 8
"""Programs that run at a time; further ones start when one of them ends."""
SECONDS = 60
"""Time after which a program is ended."""
WARNED_AT = 100
"""Results that wait for a program above which a warning is printed, once."""


class ProgramStarter:
    """Starts a command with a result as its last argument, a JSON object with the columns of the results.

    Args:
        command: The program and its first arguments, as in a shell.

    Raises:
        FileNotFoundError: If there is no such program.
    """

    def __init__(self, command: str) -> None:
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            msg = f"The program '{command}' to start (--on-anomaly) cannot be read: {error}."
            raise ValueError(msg) from error
        if not self._command or shutil.which(self._command[0]) is None:
            msg = f"There is no program '{command}' to start (--on-anomaly)."
            raise FileNotFoundError(msg)
        self._threads = ThreadPoolExecutor(AT_A_TIME, "ganomaly-edge-program")
        self._lock = threading.Lock()
        self._waiting = 0
        self._warned = False

    @property
    def waiting(self) -> int:
        """Number of results whose program has not started."""
        return self._waiting

    def start(self, result: Result) -> None:
        """Start the program soon, and warn once where it is too slow for its results."""
        with self._lock:
            self._waiting += 1
        if self._waiting > WARNED_AT and not self._warned:
            self._warned = True
            print(
                f"ganomaly-edge: the program of --on-anomaly is too slow: {self._waiting} anomalous parts wait for it.",
                file=sys.stderr,
                flush=True,
            )
        self._threads.submit(self._run, result)

    def _run(self, result: Result) -> None:
        with self._lock:
            self._waiting -= 1
        try:
            # A session of its own, so that Ctrl-C does not end it.
            subprocess.run(  # noqa: S603  (the user's own command)
                [*self._command, json.dumps(result._asdict())],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                timeout=SECONDS,
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            print(f"ganomaly-edge: the program for '{result.path}' failed: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wait for all programs."""
        self._threads.shutdown()

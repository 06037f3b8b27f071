# SPDX-License-Identifier: Apache-2.0
"""Start a program for each result, without waiting for it."""

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from ganomaly_plugin.edge.results import Result

AT_A_TIME = 8
"""Programs that run at a time; further ones start when one of them ends."""
SECONDS = 60
"""Time after which a program is ended."""


class ProgramStarter:
    """Starts a command with a result as its last argument, a JSON object with the columns of the results.

    Args:
        command: The program and its first arguments, as in a shell.

    Raises:
        FileNotFoundError: If there is no such program.
    """

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        if not self._command or shutil.which(self._command[0]) is None:
            msg = f"There is no program '{command}' to start (--on-anomaly)."
            raise FileNotFoundError(msg)
        self._threads = ThreadPoolExecutor(AT_A_TIME, "ganomaly-edge-program")

    def start(self, result: Result) -> None:
        """Start the program soon."""
        self._threads.submit(self._run, result)

    def _run(self, result: Result) -> None:
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

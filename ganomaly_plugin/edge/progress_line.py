# SPDX-License-Identifier: Apache-2.0
"""What a command is at, while it works."""

import sys
import time

SECONDS_BETWEEN_LINES = 5.0
"""How often a command says what it is at where there is no terminal, at most."""
SECONDS_BETWEEN_UPDATES = 0.1
"""How often it does in a terminal, at most."""


class ProgressLine:
    """Shows a command's state on standard error: in one line of a terminal, or elsewhere in a new line each time."""

    def __init__(self) -> None:
        self._overwrites = sys.stderr.isatty()
        self._seconds = SECONDS_BETWEEN_UPDATES if self._overwrites else SECONDS_BETWEEN_LINES
        self._shown = time.monotonic()

    def show(self, text: str) -> None:
        """Show the state, unless the last one has just been shown."""
        now = time.monotonic()
        if now - self._shown < self._seconds:
            return
        self._shown = now
        if self._overwrites:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Free the terminal's line for something else."""
        if self._overwrites:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

# SPDX-License-Identifier: Apache-2.0
"""Follow a folder that a camera writes into."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ganomaly_plugin.edge.image_list import IMAGE_SUFFIXES
from ganomaly_plugin.edge.results import written_name
from ganomaly_plugin.image_file import is_hidden

POLL = 0.05
"""Seconds between two looks at the folder."""
SETTLED = 0.1
"""Seconds that a file must not change before it is read."""
PATIENCE = 5.0
"""Seconds that an empty or unreadable file must not change before it is given up: its writer may pause."""
COARSEST_CLOCK = 3_000_000_000
"""Nanoseconds within which a file system may give two changes the same time."""


class _State(NamedTuple):
    """What changes when somebody writes to a file."""

    size: int
    modified: int


class FolderFollower:
    """Yields the images of a folder and of the folders in it as they are written, in the order of their completion.

    Hidden files and folders are left out; a file that is renamed to a name without a dot counts as new.

    A file is complete when its size and time of change have not changed for a while. Whoever cannot read it gives it
    back with :meth:`try_again`.

    Args:
        folder: The folder.
        seen: Paths, as the results give them, that are not yielded.
        stopped: Ends the iteration.

    Raises:
        NotADirectoryError: If there is no such folder.
    """

    def __init__(self, folder: Path, seen: set[str], stopped: threading.Event) -> None:
        if not folder.is_dir():
            msg = f"There is no folder '{folder}' to watch: make it, or correct the path."
            raise NotADirectoryError(msg)
        self._folder = folder
        self._seen = seen
        self._stopped = stopped
        self._listed: dict[Path, tuple[int, list[Path]]] = {}
        self._waiting: dict[Path, tuple[_State, float]] = {}
        self._again: deque[Path] = deque()
        self._last_chance: set[Path] = set()

    def skip_existing(self) -> int:
        """Leave out what is in the folder now, and return how many images that are."""
        existing = [path for path in self._list_changes() if self._is_new(path)]
        return len(existing)

    def try_again(self, path: Path) -> bool:
        """Have an unreadable file yielded again, when it has changed or has stayed as it is for some seconds.

        Returns:
            Whether it will be; not if it has stayed unreadable for that time already.
        """
        if path in self._last_chance:
            self._last_chance.discard(path)
            return False
        self._again.append(path)
        return True

    def __iter__(self) -> Iterator[Path]:
        """Yield complete files until it is stopped."""
        while not self._stopped.is_set():
            for path in self._list_changes():
                if self._is_new(path):
                    self._wait_for(path)
            while self._again:
                self._last_chance.add(self._again[0])
                self._wait_for(self._again.popleft())
            for path, (earlier, since) in list(self._waiting.items()):
                state = _look(path)
                if state is None:  # Deleted or renamed before it was complete.
                    del self._waiting[path]
                    self._seen.discard(written_name(str(path)))
                elif state != earlier:
                    self._last_chance.discard(path)
                    self._wait_for(path)
                elif time.monotonic() - since >= (
                    SETTLED if state.size and path not in self._last_chance else PATIENCE
                ):
                    del self._waiting[path]
                    yield path
            self._stopped.wait(POLL)

    def _is_new(self, path: Path) -> bool:
        name = written_name(str(path))
        is_new = name not in self._seen
        self._seen.add(name)
        return is_new

    def _wait_for(self, path: Path) -> None:
        self._waiting[path] = (_look(path) or _State(0, 0), time.monotonic())

    def _list_changes(self) -> Iterator[Path]:
        """Yield the images of all folders that have changed since the last call, so that full folders cost nothing."""
        folders, inodes = [self._folder], set()
        while folders:
            folder = folders.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in inodes:  # A link that leads back.
                    continue
                inodes.add((status.st_dev, status.st_ino))
                changed, inner = self._listed.get(folder, (-1, []))
                # Clocks of file systems are coarse: what has just changed may change again at the same time.
                if changed != status.st_mtime_ns or time.time_ns() - changed < COARSEST_CLOCK:
                    entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
                    inner = [
                        entry for entry in entries if entry.suffix.lower() not in IMAGE_SUFFIXES and entry.is_dir()
                    ]
                    self._listed[folder] = (status.st_mtime_ns, inner)
                    yield from (entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES)
            except OSError:  # Deleted meanwhile; if it is the watched one, it may come back.
                continue
            folders += inner


def _look(path: Path) -> _State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _State(status.st_size, status.st_mtime_ns)

# SPDX-License-Identifier: Apache-2.0
"""Follow a folder that a camera writes into."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ganomaly_plugin.edge.image_list import IMAGE_SUFFIXES
from ganomaly_plugin.edge.results import written_name
from ganomaly_plugin.image_file import is_hidden

POLL = 0.05
"""Seconds between two looks at the folder."""
SETTLED = 0.5
"""Seconds that a file must not change before it is read, unless told otherwise."""
PATIENCE = 5.0
"""Seconds that an empty or unreadable file must not change before it is given up: its writer may pause."""
RECHECK = 0.5
"""Seconds between two looks at files that have been yielded already."""
RECHECK_SHARE = 0.1
"""Fraction of the time that these looks may take, so that full folders cost little."""
COARSEST_CLOCK = 3_000_000_000
"""Nanoseconds within which a file system may give two changes the same time."""


class _State(NamedTuple):
    """What changes when somebody writes to a file, or puts another in its place."""

    size: int
    modified: int
    inode: int


class FolderFollower:
    """Yields the images of a folder and of the folders in it as they are written, in the order of their completion.

    Hidden files and folders are left out; a file that is renamed to a name without a dot counts as new. So does a file
    that is written again under a name that has been yielded.

    A file is complete when its size and time of change have not changed for a while. Whoever has read it calls
    :meth:`finish`, which says whether it stayed as it was meanwhile.

    Args:
        folder: The folder.
        done: Paths, as the results give them, whose files are not yielded if they are there at the first look.
        is_stopped: Says whether the iteration is to end.
        settled: Seconds that a file must not change before it is yielded.

    Raises:
        NotADirectoryError: If there is no such folder.
    """

    def __init__(self, folder: Path, done: set[str], is_stopped: Callable[[], bool], settled: float = SETTLED) -> None:
        if not folder.is_dir():
            msg = f"There is no folder '{folder}' to watch: make it, or correct the path."
            raise NotADirectoryError(msg)
        self._folder = folder
        self._done = done
        self._is_stopped = is_stopped
        self._settled = settled
        self._lock = threading.Lock()
        self._listed: dict[Path, tuple[int, list[Path]]] = {}
        self._known: dict[Path, _State] = {}
        self._waiting: dict[Path, tuple[_State, float]] = {}
        self._in_work: dict[Path, _State] = {}
        self._again: deque[Path] = deque()
        self._last_chance: set[Path] = set()
        self._next_recheck = 0.0

    def skip_existing(self) -> int:
        """Leave out what is in the folder now, and return how many images that are."""
        for path in self._list_changes():
            self._known[path] = _look(path) or _State(0, 0, 0)
        return len(self._known)

    def finish(self, path: Path, readable: bool) -> bool:
        """Say that a file has been read.

        Returns:
            Whether that counts. Otherwise it is yielded again: one that changed meanwhile when it has settled, an
            unreadable one when it has changed or has stayed as it is for some seconds, but not after these.
        """
        state = _look(path)
        with self._lock:
            if state is not None and state != self._in_work[path]:
                self._last_chance.discard(path)
                self._again.append(path)
                return False
            if not readable and path not in self._last_chance:
                self._last_chance.add(path)
                self._again.append(path)
                return False
            self._last_chance.discard(path)
            self._known[path] = self._in_work.pop(path)
            return True

    def __iter__(self) -> Iterator[Path]:
        """Yield complete files until it is stopped."""
        while not self._is_stopped():
            for path in self._list_changes():
                self._take_in(path)
            self._done = set()  # From now on, a file under such a name is another one.
            if time.monotonic() >= self._next_recheck:
                self._recheck()
            while self._again:
                path = self._again.popleft()
                self._wait_for(path)
                with self._lock:
                    del self._in_work[path]
            for path, (earlier, since) in list(self._waiting.items()):
                if self._is_stopped():
                    return
                state = _look(path)
                if state is None:  # Deleted or renamed before it was complete.
                    del self._waiting[path]
                    self._last_chance.discard(path)
                elif state != earlier:
                    self._last_chance.discard(path)
                    self._wait_for(path)
                elif time.monotonic() - since >= (
                    self._settled if state.size and path not in self._last_chance else max(PATIENCE, self._settled)
                ):
                    with self._lock:
                        self._in_work[path] = state
                    del self._waiting[path]
                    yield path
            time.sleep(POLL)

    def _take_in(self, path: Path) -> None:
        with self._lock:
            if path in self._known or path in self._waiting or path in self._in_work:
                return
        if written_name(str(path)) in self._done:
            self._known[path] = _look(path) or _State(0, 0, 0)
        else:
            self._wait_for(path)

    def _recheck(self) -> None:
        """Find files that were written again, and forget those that are gone."""
        start = time.monotonic()
        with self._lock:
            known = list(self._known.items())
        for path, earlier in known:
            state = _look(path)
            if state == earlier or (state is None and not path.parent.is_dir()):  # A lost drive may come back.
                continue
            del self._known[path]
            if state is not None:
                self._wait_for(path)
        now = time.monotonic()
        self._next_recheck = now + max(RECHECK, (now - start) / RECHECK_SHARE)

    def _wait_for(self, path: Path) -> None:
        self._waiting[path] = (_look(path) or _State(0, 0, 0), time.monotonic())

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
    return _State(status.st_size, status.st_mtime_ns, status.st_ino)

# SPDX-License-Identifier: Apache-2.0
"""Start work ahead of whoever takes its results."""

import math
import threading
from collections.abc import Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

PATIENCE = 0.1
"""Seconds after which a thread that waits for an item is left to itself, and between two looks for signals."""

Item = TypeVar("Item")
Job = TypeVar("Job")


def start_ahead(
    items: Iterable[Item], start: Callable[[Item], Job], ahead: int
) -> Generator[tuple[Item, Job | Exception], None, None]:
    """Start a job for each item in a thread of its own, and yield them in order, each as soon as it has started.

    Whoever takes the jobs waits for no item that is not there yet, however long the next one takes to come. The thread
    reads the items too, so the iterable must not mind; a stream that is closed early leaves the one that it waits for.
    Unless it waits for an item it has ended by then, since Python's end aborts threads that are in OpenVINO.

    Args:
        items: May be endless, slow, or raise.
        start: Turns an item into a job.
        ahead: How many items are taken before their jobs are.

    Yields:
        Each item with its job, or with the error that ``start`` raised.

    Raises:
        Exception: What the iterable raised, after all that it gave before.
    """
    started: SimpleQueue[tuple[Item, Job | Exception] | None] = SimpleQueue()
    places = threading.Semaphore(ahead)
    closed = threading.Event()
    waiting = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            iterator = iter(items)
            while places.acquire() and not closed.is_set():
                waiting.set()
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                finally:
                    waiting.clear()
                if closed.is_set():
                    break
                try:
                    job: Job | Exception = start(item)
                except Exception as error:  # The consumer decides what it means.
                    job = error
                started.put((item, job))
                del item, job  # Not to be kept while the thread waits.
        except BaseException as error:
            failures.append(error)
        finally:
            started.put(None)

    thread = threading.Thread(target=read, name="ganomaly-edge-reader", daemon=True)
    thread.start()
    try:
        while (job := _take(started)) is not None:
            yield job
            places.release()
    finally:
        closed.set()
        places.release()
        while thread.is_alive():
            thread.join(PATIENCE)
            if waiting.is_set():
                break
    if failures:
        raise failures[0]


def _take(queue: SimpleQueue[Item]) -> Item:
    """Wait for an item, and let handlers of signals run now and then: one that comes just before a wait ends none."""
    while True:
        try:
            return queue.get(timeout=PATIENCE)
        except Empty:
            continue


class Budget:
    """An amount that several jobs share; a job that needs more than all of it has to be alone."""

    def __init__(self, amount: float) -> None:
        self._amount = amount
        self._used = 0
        self._changed = threading.Condition()

    def take(self, amount: int) -> None:
        """Wait until there is enough, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self._amount)
            self._used += amount

    def give_back(self, amount: int) -> None:
        """Give back what a job has taken."""
        with self._changed:
            self._used -= amount
            self._changed.notify_all()

    def close(self) -> None:
        """Let all jobs that wait have what they ask for, since none that has something may come back."""
        with self._changed:
            self._amount = math.inf
            self._changed.notify_all()

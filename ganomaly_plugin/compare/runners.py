# SPDX-License-Identifier: Apache-2.0
"""Where runs are executed: processes of this machine, or tasks of a Ray cluster."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal
from uuid import uuid4

from ganomaly_plugin.compare.grid import FAILURE, PROGRESS, Run

RunnerName = Literal["local", "ray"]
RETRIES = 3
"""How often Ray restarts a run whose worker died."""
LOG = "log.txt"
UNFINISHED = ".unfinished-"
"""Stands in the names of the folders of runs that are not finished, after the run's seed."""
SECONDS_BETWEEN_LINES = 5.0
"""How often a training says what it is at where there is no terminal, at most."""


class Pace:
    """Tells when a line is due: the first of its kind at once, the next ones ``SECONDS_BETWEEN_LINES`` later."""

    def __init__(self) -> None:
        self._printed: dict[Hashable, float] = {}

    def is_due(self, kind: Hashable) -> bool:
        """Return whether to print a line of this kind now."""
        now = time.monotonic()
        if now - self._printed.get(kind, float("-inf")) < SECONDS_BETWEEN_LINES:
            return False
        self._printed[kind] = now
        return True


def visible_gpus(count: int) -> list[str]:
    """Name this machine's GPUs for ``CUDA_VISIBLE_DEVICES``.

    Args:
        count: Number of those that PyTorch sees, which are the first of this process's own ``CUDA_VISIBLE_DEVICES``.
    """
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if own is None else [name.strip() for name in own.split(",")]
    return names[:count]


def run_locally(
    runs: Sequence[Run],
    folder: Path,
    jobs: int,
    gpus: Sequence[str] = (),
    say: Callable[[Run, str], None] = lambda *_: None,
) -> Iterator[tuple[Run, str]]:
    """Execute runs in processes of their own, and yield each with the reason of its failure, empty for none.

    A run's folder appears once it is complete, so that a kill at any moment leaves complete runs only.

    Args:
        runs: What to execute.
        folder: Where the runs' folders go.
        jobs: Processes at a time; each gets an equal part of the processor's cores.
        gpus: Names of the accelerators, each for one process at a time; ``jobs`` should be their number.
        say: Called from threads with what a run is at, every second; the first word names its stage.
    """
    places: SimpleQueue[dict[str, str]] = SimpleQueue()
    threads = _threads(jobs)
    for number in range(jobs):
        places.put({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
    running: set[subprocess.Popen[bytes]] = set()

    def execute(run: Run) -> str:
        place = places.get()
        target = folder / run.path
        unfinished = _fresh_folder(target, run)
        process = _start(unfinished, threads, place)
        running.add(process)
        status = _wait(process, unfinished, partial(say, run))
        running.discard(process)
        places.put(place)
        return _finish(unfinished, target, status)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(execute, run): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # Also when the user interrupts: pending runs are cancelled, and running ones end.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()


def run_on_ray(
    runs: Sequence[Run], folder: Path, jobs: int, address: str | None = None, gpu: bool = False
) -> Iterator[tuple[Run, str]]:
    """Execute runs as tasks of a Ray cluster, and yield each with the reason of its failure, empty for none.

    Ray restarts a task when its worker dies. Results come back as bytes, so no file system need be shared.

    Args:
        runs: What to execute.
        folder: Where the runs' folders go, on this machine.
        jobs: Into how many parts to divide this machine's cores; a task asks for one part on any machine.
        address: Address of a cluster; ``None`` starts one here.
        gpu: Whether each task needs an accelerator to itself.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = "The Ray runner needs Ray: pip install 'ganomaly-plugin[ray]'."
        raise ModuleNotFoundError(msg) from error

    ray.init(address=address, ignore_reinit_error=True)
    threads = _threads(jobs)
    task: Any = ray.remote(num_cpus=threads, num_gpus=int(gpu), max_calls=1, max_retries=RETRIES)(_run_for_ray)
    pending = {task.remote(run.to_json(), threads): run for run in runs}
    while pending:
        (reference,), _ = ray.wait(list(pending))
        run = pending.pop(reference)
        target = folder / run.path
        unfinished = _fresh_folder(target, run)
        try:
            status, files = ray.get(reference)
        except ray.exceptions.RayError as error:
            (unfinished / FAILURE).write_text(" ".join(f"{type(error).__name__}: {error}".split()) + "\n")
            status = 1
        else:
            for name, content in files.items():
                path = unfinished / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        yield run, _finish(unfinished, target, status)


def _run_for_ray(text: str, threads: int) -> tuple[int, dict[str, bytes]]:
    """Execute one run in a process below a worker, and return its status and the files that it left.

    What the worker prints, Ray prints where the comparison was started.
    """
    run = Run.from_json(text)
    pace = Pace()

    def say(what: str) -> None:
        if pace.is_due(what.split()[0]):
            print(f"{run.title}: {what}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = _fresh_folder(Path(name) / "run", run)
        status = _wait(_start(folder, threads, {}), folder, say)
        files = (path for path in folder.rglob("*") if path.is_file())
        return status, {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _threads(jobs: int) -> int:
    """Divide this machine's cores."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _start(folder: Path, threads: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a run's process, which ends when its standard input does, and so when this process is gone."""
    environment = environment | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "ganomaly_plugin.compare.run", str(folder)]
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment
        )


def _wait(process: subprocess.Popen[bytes], folder: Path, say: Callable[[str], None]) -> int:
    """Wait for a run's process, tell what it is at, and return its status."""
    file, text = folder / PROGRESS, "loading"
    while True:
        try:
            status = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            text = (file.read_text() if file.exists() else "") or text  # Empty while it is being written.
            say(text)
        else:
            file.unlink(missing_ok=True)
            return status


def _fresh_folder(target: Path, run: Run) -> Path:
    """Make a folder beside the run's own that says what to execute; :func:`_finish` gives it its name."""
    folder = target.with_name(f"{target.name}{UNFINISHED}{uuid4().hex}")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(run.to_json())
    return folder


def _finish(unfinished: Path, folder: Path, status: int) -> str:
    """Give a run's folder its name, and say why the run failed: its own message, or the signal that ended it."""
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
    if status == 0:
        return ""
    failure = folder / FAILURE
    if failure.exists():
        return failure.read_text().strip()
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}, see {folder / LOG}"

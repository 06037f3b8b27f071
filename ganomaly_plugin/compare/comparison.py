# SPDX-License-Identifier: Apache-2.0
"""Executes a comparison from configuration to report, and resumes it."""

import json
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import yaml
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from ganomaly_plugin.compare import timing
from ganomaly_plugin.compare.estimate import estimate
from ganomaly_plugin.compare.grid import KEYS, Grid, Run, read_grid
from ganomaly_plugin.compare.record import Result, find_damage, read_result, write_json
from ganomaly_plugin.compare.report import write_report
from ganomaly_plugin.compare.run import build_datamodule, build_model, check_data, check_trainer
from ganomaly_plugin.compare.runners import UNFINISHED, Pace, RunnerName, run_locally, run_on_ray, visible_gpus
from ganomaly_plugin.compare.summary import Summary


def compare(
    config: str | Path | dict[str, Any],
    output: str | Path = "results/compare",
    *,
    resume: bool = False,
    jobs: int = 1,
    runner: RunnerName = "local",
    ray_address: str | None = None,
) -> Summary:
    """Train and test every model on every dataset, category and seed, and write the report.

    Args:
        config: A YAML file with a section ``compare``, or the section's content; see
            :func:`~ganomaly_plugin.compare.grid.read_grid`.
        output: Folder of the results. Each finished run is kept there at once.
        resume: Keep the finished runs, and execute those that failed or never started.
        jobs: Trainings at a time; the processor's cores are divided among them, and accelerators take one each.
            Timings always run alone.
        runner: ``local`` for processes of this machine, ``ray`` for a Ray cluster.
        ray_address: Address of the cluster; ``None`` starts one on this machine.

    Returns:
        The figures. Runs that failed are in its ``results`` with their reasons, and nowhere else.

    Raises:
        ValueError: If the configuration is wrong; nothing has been trained then.
        FileExistsError: If the folder has results already and ``resume`` is not set, or results of other settings.
    """
    grid = load(config)
    if jobs < 1:
        msg = f"jobs is {jobs}; it must be 1 or more."
        raise ValueError(msg)
    folder = Path(output)
    if (folder / "runs").exists() and not resume:
        msg = f"'{folder}' has results already: continue them with --resume, or name another folder with --output."
        raise FileExistsError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _execute(grid, folder, jobs, runner, ray_address)
    except Timeout as error:
        msg = f"Another comparison is writing to '{folder}': wait for its end, or name another folder with --output."
        raise FileExistsError(msg) from error


def _execute(grid: Grid, folder: Path, jobs: int, runner: RunnerName, ray_address: str | None) -> Summary:
    """Execute the runs that have no results yet, time the exports and write the report."""
    missing = _missing(grid, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({"compare": grid.config}, sort_keys=False))
    reasons = {}
    with _progress() as progress:
        done = len(grid.runs) - len(missing)
        task = progress.add_task("trainings", total=len(grid.runs), completed=done)
        lines = _ProgressLines(progress)
        for run, reason in _run(missing, folder / "runs", jobs, runner, ray_address, lines.show):
            reasons[run.path] = reason
            lines.end(run)
            line = f"[red]failed[/red] {escape(run.title)}: {escape(reason)}" if reason else f"done {escape(run.title)}"
            progress.console.print(line)
            progress.advance(task)
    results = [read_result(folder / "runs", run, reasons.get(run.path, "")) for run in grid.runs]
    timings = _time(results, folder)
    summary = Summary(grid, results)
    write_report(folder, summary, timings)
    return summary


class _ProgressLines:
    """Shows what trainings are at: each in a line of the terminal, or elsewhere printed every few seconds.

    Args:
        progress: What shows how many are done.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[Path, TaskID] = {}
        self.pace = Pace()

    def show(self, run: Run, text: str) -> None:
        """Show what a run is at."""
        line = f"{run.title}: {text}"
        if self.progress.console.is_terminal:
            if run.path not in self.tasks:
                self.tasks[run.path] = self.progress.add_task("", total=None)
            self.progress.update(self.tasks[run.path], description=escape(line))
        elif self.pace.is_due((run.path, text.split()[0])):
            self.progress.console.print(line, markup=False, highlight=False)

    def end(self, run: Run) -> None:
        """Show a run no longer."""
        if run.path in self.tasks:
            self.progress.remove_task(self.tasks.pop(run.path))


def load(config: str | Path | dict[str, Any]) -> Grid:
    """Read a configuration, build every model that it names once, and check its data.

    Raises:
        ValueError: If something in it is wrong; the message names it.
    """
    section: Any = config
    if not isinstance(config, dict):
        content = yaml.safe_load(Path(config).read_text())
        section = content.get("compare") if isinstance(content, dict) else None
        if not isinstance(section, dict):
            msg = f"'{config}' has no section 'compare': put models, data and seeds below that key."
            raise ValueError(msg)
        if outside := sorted(content.keys() & KEYS):
            msg = f"'{config}' has {', '.join(outside)} beside the section 'compare': indent it below that key."
            raise ValueError(msg)
    grid = read_grid(section)
    for run in {run.model: run for run in reversed(grid.runs)}.values():
        check_trainer(run)
        _warn_of_defaults(run, build_model(run))
    seen: dict[tuple[str, frozenset[Any], frozenset[Any]], str] = {}
    for run in {(run.dataset, run.category): run for run in reversed(grid.runs)}.values():
        datamodule = build_datamodule(run)
        check_data(run, datamodule)
        key = run.dataset, *_images(datamodule)
        if key in seen:
            same = f"{seen[key]} and {run.category}"
            warnings.warn(
                f"{run.dataset} has the same images in its categories {same}: means count them twice.", stacklevel=3
            )
        seen[key] = run.category
    return grid


def _images(datamodule: AnomalibDataModule) -> tuple[frozenset[Any], frozenset[Any]]:
    """Return training and test images, by path and label."""
    training, test = (
        frozenset(zip(data.samples.image_path.astype(str), data.samples.label_index, strict=True))
        for data in (datamodule.train_data, datamodule.test_data)
    )
    return training, test


def _warn_of_defaults(run: Run, model: AnomalibModule) -> None:
    """Say so where nothing bounds a training."""
    limits = ("max_epochs", "max_steps", "max_time")
    if not any(name in section for name in limits for section in (run.trainer, model.trainer_arguments or {})):
        msg = (
            f"{run.model} has no {' or '.join(limits)} in its trainer section, so it trains as long as is its default, "
            "which is 1,000 epochs if the model has none. --dry-run shows how many."
        )
        warnings.warn(msg, stacklevel=4)


def print_plan(config: str | Path | dict[str, Any], jobs: int = 1) -> None:
    """Print the runs of a comparison, and about how long they will take.

    Args:
        config: As for :func:`compare`.
        jobs: Trainings at a time.
    """
    grid = load(config)
    table = Table("model", "dataset", "category", "seeds", "epochs", "about, s")
    known = {(run.model, run.dataset): run for run in reversed(grid.runs)}
    plans = {key: estimate(run) for key, run in known.items()}
    seeds: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in grid.runs:
        seeds[run.model, run.dataset, run.category].append(str(run.seed))
    for (model, dataset, category), numbers in seeds.items():
        plan = plans[model, dataset]
        seconds = plan.seconds * len(numbers)
        table.add_row(
            *(model, dataset, category, ", ".join(numbers)),
            f"{plan.epochs:,}" if isfinite(plan.epochs) else "no limit",
            f"{seconds:,.0f}" if isfinite(seconds) else "no end",
        )
    console = Console()
    console.print(table)
    minutes = sum(plans[run.model, run.dataset].seconds for run in grid.runs) / jobs / 60
    duration = (
        "no end" if not isfinite(minutes) else f"about {minutes:,.0f} minutes" if minutes >= 1 else "under a minute"
    )
    console.print(f"{len(grid.runs)} trainings, {duration} with {jobs} at a time.")
    timed = [run for run in grid.runs if run.openvino]
    if timed:
        formats = ", ".join(("PyTorch", *timed[0].openvino))
        console.print(f"Then the exports of {len(timed)} of them are timed: {formats}.")


def overview(summary: Summary) -> Table:
    """Return the image AUROCs for a terminal: mean and standard deviation by model and dataset."""
    columns = [(dataset, mean) for dataset in summary.categories for mean in summary.means(dataset)]
    table = Table("image AUROC", *(escape(summary.mean_title(*column, column[0])) for column in columns))
    for model in summary.grid.models:
        values = [summary.value(*column, model, "image_AUROC") for column in columns]
        table.add_row(escape(model), *(str(value or "-") for value in values))
    return table


def _missing(grid: Grid, folder: Path) -> list[Run]:
    """Return the runs that have no result yet, or a damaged one, which is said."""
    finished = folder / "runs"
    for left in list(finished.rglob(f"*{UNFINISHED}*")):
        shutil.rmtree(left)
    wanted = {run.path: run for run in grid.runs}
    for file in finished.rglob("run.json"):
        path = file.parent.relative_to(finished)
        if path not in wanted or _holds_another(file, wanted[path]):
            msg = f"'{folder}' holds another comparison, with {path} in it: name another folder with --output."
            raise FileExistsError(msg)
    missing = []
    for run in grid.runs:
        if not (finished / run.path / "result.json").exists():
            missing.append(run)
        elif damage := find_damage(finished / run.path):
            Console().print(f"damaged {run.title}: {damage}, so it runs again", markup=False, highlight=False)
            missing.append(run)
    return missing


def _holds_another(file: Path, run: Run) -> bool:
    """Whether a run is finished, and its file can be read and says something else."""
    try:
        other = Run.from_json(file.read_text())
    except (KeyError, TypeError, ValueError):
        return False
    return other.to_json() != run.to_json() and file.with_name("result.json").exists()


def _run(
    runs: list[Run],
    folder: Path,
    jobs: int,
    runner: RunnerName,
    ray_address: str | None,
    say: Callable[[Run, str], None],
) -> Iterator[tuple[Run, str]]:
    """Execute runs on this machine or on Ray."""
    n_gpus = torch.cuda.device_count() if any(run.trainer["accelerator"] != "cpu" for run in runs) else 0
    if runner == "ray":
        return run_on_ray(runs, folder, jobs, ray_address, gpu=n_gpus > 0)
    return run_locally(runs, folder, min(jobs, n_gpus) if n_gpus else jobs, visible_gpus(n_gpus), say)


def _time(results: list[Result], folder: Path) -> list[timing.TimedExport]:
    """Time the exports of each dataset, or read the timings of an earlier run."""
    file = folder / "timings.json"
    known = _read_timings(file)
    timings: list[timing.TimedExport] = []
    for dataset in dict.fromkeys(result.run.dataset for result in results):
        wanted = {
            (result.run.model, name): (result, export)
            for result in results
            if result.run.dataset == dataset
            for name, export in result.record.get("exports", {}).items()
        }
        earlier = [line for line in known if line.dataset == dataset]
        if [(line.model, line.format) for line in earlier] == list(wanted):
            timings += earlier
            continue
        possible = {
            key: timing.Export(key[1], result.folder / export["path"], tuple(result.record["input_size"]))
            for key, (result, export) in wanted.items()
            if "path" in export
        }
        with _progress() as progress:
            task = progress.add_task(f"timings on {dataset}", total=len(possible) * (1 + timing.ROUNDS))
            measured = timing.measure(list(possible.values()), partial(_advance, progress, task, Pace()))
        found = dict(zip(possible, measured, strict=True))
        for (model, name), (_, export) in wanted.items():
            line = found.get((model, name), timing.Timing(reason=export.get("reason", "")))
            timings.append(timing.TimedExport(model, dataset, name, export.get("megabytes", 0.0), *line))
        write_json(file, [line._asdict() for line in timings])
    return timings


def _read_timings(file: Path) -> list[timing.TimedExport]:
    """Read the timings of an earlier run, unless there are none or they are damaged, which is said."""
    if not file.exists():
        return []
    try:
        return [timing.TimedExport(**line) for line in json.loads(file.read_text())]
    except (TypeError, ValueError):
        Console().print(f"damaged {file.name}: the exports are timed again", highlight=False)
        return []


def _advance(progress: Progress, number: TaskID, pace: Pace) -> None:
    """Show that a step of a task is done: in its bar in a terminal, elsewhere in a line now and then."""
    progress.advance(number)
    task = progress.tasks[number]
    if not progress.console.is_terminal and pace.is_due(number):
        progress.console.print(f"{task.description}: {task.completed:g} of {task.total:g}", highlight=False)


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())

# SPDX-License-Identifier: Apache-2.0
"""Executes a comparison from configuration to report, and resumes it."""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from ganomaly_plugin.compare import timing
from ganomaly_plugin.compare.estimate import estimate_seconds
from ganomaly_plugin.compare.grid import Grid, Run, read_grid
from ganomaly_plugin.compare.report import write_report
from ganomaly_plugin.compare.run import build_datamodule, build_model, check_data
from ganomaly_plugin.compare.runners import RunnerName, run_locally, run_on_ray
from ganomaly_plugin.compare.summary import MEAN, Result, Summary, read_result


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
    missing = _missing(grid, folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"compare": grid.config}, sort_keys=False))

    reasons = {}
    with _progress() as progress:
        done = len(grid.runs) - len(missing)
        task = progress.add_task("trainings", total=len(grid.runs), completed=done)
        for run, reason in _run(missing, folder / "runs", jobs, runner, ray_address):
            reasons[run.path] = reason
            progress.console.print(f"[red]failed[/red] {run.title}: {reason}" if reason else f"done {run.title}")
            progress.advance(task)
    results = [read_result(folder / "runs", run, reasons.get(run.path, "")) for run in grid.runs]
    timings = _time(results, folder)
    summary = Summary(grid, results)
    write_report(folder, summary, timings)
    return summary


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
    grid = read_grid(section)
    for run in {run.model: run for run in reversed(grid.runs)}.values():
        build_model(run)
    for run in {(run.dataset, run.category): run for run in reversed(grid.runs)}.values():
        check_data(run, build_datamodule(run))
    return grid


def print_plan(config: str | Path | dict[str, Any], jobs: int = 1) -> None:
    """Print the runs of a comparison, and about how long they will take.

    Args:
        config: As for :func:`compare`.
        jobs: Trainings at a time.
    """
    grid = load(config)
    table = Table("model", "dataset", "category", "seeds", "about, s")
    known = {(run.model, run.dataset): run for run in reversed(grid.runs)}
    seconds = {key: estimate_seconds(run) for key, run in known.items()}
    seeds: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in grid.runs:
        seeds[run.model, run.dataset, run.category].append(str(run.seed))
    for (model, dataset, category), numbers in seeds.items():
        table.add_row(model, dataset, category, ", ".join(numbers), f"{seconds[model, dataset] * len(numbers):.0f}")
    console = Console()
    console.print(table)
    minutes = sum(seconds[run.model, run.dataset] for run in grid.runs) / jobs / 60
    console.print(f"{len(grid.runs)} trainings, about {minutes:.0f} minutes with {jobs} at a time.")


def overview(summary: Summary) -> Table:
    """Return the image AUROCs for a terminal: mean and standard deviation by model and dataset."""
    table = Table("image AUROC", *summary.categories)
    for model in summary.grid.models:
        values = [summary.value(dataset, MEAN, model, "image_AUROC") for dataset in summary.categories]
        table.add_row(model, *(str(value or "-") for value in values))
    return table


def _missing(grid: Grid, folder: Path, resume: bool) -> list[Run]:
    """Return the runs that have no result yet."""
    finished = folder / "runs"
    if finished.exists() and not resume:
        msg = f"'{folder}' has results already: continue them with --resume, or name another folder with --output."
        raise FileExistsError(msg)
    known = {Run.from_json(path.read_text()).path: path.parent for path in finished.rglob("run.json")}
    wanted = {run.path: run for run in grid.runs}
    for path, place in known.items():
        complete = (place / "result.json").exists()
        if path not in wanted or (complete and (place / "run.json").read_text() != wanted[path].to_json()):
            msg = f"'{folder}' holds another comparison, with {path} in it: name another folder with --output."
            raise FileExistsError(msg)
    return [run for run in grid.runs if not (finished / run.path / "result.json").exists()]


def _run(
    runs: list[Run], folder: Path, jobs: int, runner: RunnerName, ray_address: str | None
) -> Iterator[tuple[Run, str]]:
    """Execute runs on this machine or on Ray."""
    n_gpus = torch.cuda.device_count() if any(run.trainer["accelerator"] != "cpu" for run in runs) else 0
    if runner == "ray":
        return run_on_ray(runs, folder, jobs, ray_address, gpu=n_gpus > 0)
    gpus = [str(number) for number in range(n_gpus)]
    return run_locally(runs, folder, min(jobs, n_gpus) if gpus else jobs, gpus)


def _time(results: list[Result], folder: Path) -> list[timing.TimedExport]:
    """Time the exports of each dataset, or read the timings of an earlier run."""
    file = folder / "timings.json"
    known = [timing.TimedExport(**line) for line in json.loads(file.read_text())] if file.exists() else []
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
            task = progress.add_task(f"timings on {dataset}", total=timing.ROUNDS)
            measured = timing.measure(list(possible.values()), partial(progress.advance, task))
        found = dict(zip(possible, measured, strict=True))
        for (model, name), (_, export) in wanted.items():
            line = found.get((model, name), timing.Timing(reason=export.get("reason", "")))
            timings.append(timing.TimedExport(model, dataset, name, export.get("megabytes", 0.0), *line))
        file.write_text(json.dumps([line._asdict() for line in timings], indent=1) + "\n")
    return timings


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())

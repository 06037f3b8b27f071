# SPDX-License-Identifier: Apache-2.0
"""Runs a comparison from configuration to report, and goes on where an earlier run stopped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ganomaly_plugin.compare import timing
from ganomaly_plugin.compare.cell import build_datamodule, build_model, check_data
from ganomaly_plugin.compare.estimate import estimate_seconds
from ganomaly_plugin.compare.grid import Cell, Grid, read_grid
from ganomaly_plugin.compare.report import TimedExport, write_report
from ganomaly_plugin.compare.runners import RunnerName, run_locally, run_on_ray
from ganomaly_plugin.compare.summary import MEAN, Outcome, Summary, read_outcome


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
        output: Folder of the results. Each finished cell lies there at once.
        resume: Keep the finished cells of an earlier run, and run those that failed or never began.
        jobs: Trainings at a time; the processor's cores are divided among them, and accelerators take one each.
            Timings always run alone.
        runner: ``local`` for processes of this machine, ``ray`` for a Ray cluster.
        ray_address: Address of the cluster; ``None`` starts one on this machine.

    Returns:
        The figures. Cells that failed are in its ``outcomes`` with their reasons, and nowhere else.

    Raises:
        ValueError: If the configuration is wrong; nothing has run then.
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
        done = len(grid.cells) - len(missing)
        task = progress.add_task("trainings", total=len(grid.cells), completed=done)
        for cell, reason in _run(missing, folder / "cells", jobs, runner, ray_address):
            reasons[cell.path] = reason
            progress.console.print(f"[red]failed[/red] {cell.title}: {reason}" if reason else f"done {cell.title}")
            progress.advance(task)
    outcomes = [read_outcome(folder / "cells", cell, reasons.get(cell.path, "")) for cell in grid.cells]
    timings = _time(outcomes, folder)
    summary = Summary(grid, outcomes)
    write_report(folder, summary, timings)
    return summary


def load(config: str | Path | dict[str, Any]) -> Grid:
    """Read a configuration, build every model that it names once, and look at its data.

    Raises:
        ValueError: If something in it is wrong; the message names it.
    """
    if not isinstance(config, dict):
        content = yaml.safe_load(Path(config).read_text())
        if not isinstance(content, dict) or not isinstance(content.get("compare"), dict):
            msg = f"'{config}' has no section 'compare': put models, data and seeds below that key."
            raise ValueError(msg)
        section: dict[str, Any] = content["compare"]
    else:
        section = config
    grid = read_grid(section)
    for cell in {cell.model: cell for cell in reversed(grid.cells)}.values():
        build_model(cell)
    for cell in {(cell.dataset, cell.category): cell for cell in reversed(grid.cells)}.values():
        check_data(cell, build_datamodule(cell))
    return grid


def print_plan(config: str | Path | dict[str, Any], jobs: int = 1) -> None:
    """Print the cells of a comparison, and about how long they will take.

    Args:
        config: As for :func:`compare`.
        jobs: Trainings at a time.
    """
    grid = load(config)
    table = Table("model", "dataset", "category", "seeds", "about, s")
    total, known = 0.0, {}
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for cell in grid.cells:
        seeds.setdefault((cell.model, cell.dataset, cell.category), []).append(cell.seed)
        if (cell.model, cell.dataset) not in known:
            known[cell.model, cell.dataset] = estimate_seconds(cell)
        total += known[cell.model, cell.dataset]
    for (model, dataset, category), numbers in seeds.items():
        seconds = known[model, dataset] * len(numbers)
        table.add_row(model, dataset, category, ", ".join(map(str, numbers)), f"{seconds:.0f}")
    console = Console()
    console.print(table)
    console.print(f"{len(grid.cells)} trainings, about {total / jobs / 60:.0f} minutes with {jobs} at a time.")


def overview(summary: Summary) -> Table:
    """Lay the image AUROCs out for a terminal: mean and deviation by model and dataset."""
    table = Table("image AUROC", *summary.categories)
    for model in summary.grid.models:
        values = [summary.value(dataset, MEAN, model, "image_AUROC") for dataset in summary.categories]
        table.add_row(model, *(f"{value.mean:.3f} ± {value.deviation:.3f}" if value else "-" for value in values))
    return table


def _missing(grid: Grid, folder: Path, resume: bool) -> list[Cell]:
    """Return the cells that have no result yet."""
    cells = folder / "cells"
    if cells.exists() and not resume:
        msg = f"'{folder}' has results already: continue them with --resume, or name another folder with --output."
        raise FileExistsError(msg)
    known = {Cell.from_json(path.read_text()).path: path.parent for path in cells.rglob("cell.json")}
    wanted = {cell.path: cell for cell in grid.cells}
    for path, place in known.items():
        finished = (place / "result.json").exists()
        if path not in wanted or (finished and (place / "cell.json").read_text() != wanted[path].to_json()):
            msg = f"'{folder}' holds another comparison, with {path} in it: name another folder with --output."
            raise FileExistsError(msg)
    return [cell for cell in grid.cells if not (cells / cell.path / "result.json").exists()]


def _run(
    cells: list[Cell], folder: Path, jobs: int, runner: RunnerName, ray_address: str | None
) -> Iterator[tuple[Cell, str]]:
    """Run cells where the user wants them to."""
    n_gpus = torch.cuda.device_count() if any(cell.trainer["accelerator"] != "cpu" for cell in cells) else 0
    if runner == "ray":
        return run_on_ray(cells, folder, jobs, ray_address, gpu=n_gpus > 0)
    gpus = [str(number) for number in range(n_gpus)]
    return run_locally(cells, folder, min(jobs, n_gpus) if gpus else jobs, gpus)


def _time(outcomes: list[Outcome], folder: Path) -> list[TimedExport]:
    """Time the exports of each dataset, unless an earlier run has."""
    file = folder / "timings.json"
    known = [TimedExport(**line) for line in json.loads(file.read_text())] if file.exists() else []
    timings: list[TimedExport] = []
    for dataset in dict.fromkeys(outcome.cell.dataset for outcome in outcomes):
        wanted = [
            (outcome, form, export)
            for outcome in outcomes
            if outcome.cell.dataset == dataset and outcome.result
            for form, export in outcome.result["exports"].items()
        ]
        earlier = [line for line in known if line.dataset == dataset]
        if [(line.model, line.form) for line in earlier] == [(o.cell.model, form) for o, form, _ in wanted]:
            timings += earlier
            continue
        possible = [(outcome, form, export) for outcome, form, export in wanted if "path" in export]
        with _progress() as progress:
            task = progress.add_task(f"timings on {dataset}", total=timing.ROUNDS)
            measured = timing.measure(
                [
                    timing.Export(form, outcome.folder / export["path"], tuple((outcome.result or {})["input_size"]))
                    for outcome, form, export in possible
                ],
                lambda progress=progress, task=task: progress.advance(task),  # type: ignore[misc]
            )
        found = {(outcome.cell.model, form): line for (outcome, form, _), line in zip(possible, measured, strict=True)}
        for outcome, form, export in wanted:
            line = found.get((outcome.cell.model, form), timing.Timing(reason=export.get("reason", "")))
            timings.append(TimedExport(outcome.cell.model, dataset, form, export.get("megabytes", 0.0), *line))
        file.write_text(json.dumps([line._asdict() for line in timings], indent=1) + "\n")
    return timings


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )

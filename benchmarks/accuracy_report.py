# SPDX-License-Identifier: Apache-2.0
"""Tables and figure of the accuracy benchmark, from the records of its runs."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import mean_and_deviation

Record = dict[str, Any]
Pick = Callable[[list[float]], float]

SWING_EPOCHS = 5


def report(folder: Path, columns: Sequence[str], rivals: Sequence[str]) -> str:
    """Write tables and figure beside the folder that holds the records, and return the tables.

    Args:
        folder: Where the records lie, one JSON file a run.
        columns: GANomaly's columns, in their order; ``default-`` begins the names of the ablations. Those without
            records are left out.
        rivals: Columns of other detectors, likewise; their table compares them with ``default``.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = {record["column"] for record in records}
    ours = [column for column in columns if column in found]
    recipes = [column for column in ours if "-" not in column]
    levers = [column for column in ours if "-" in column]
    others = [column for column in rivals if column in found]
    tables = [_table_of_columns(records, recipes), _table_of_scores(records, recipes)]
    if levers:
        tables.append(_table_of_levers(records, levers))
    if others:
        tables.append(_table_of_detectors(records, others))
    text = "\n\n".join(tables)
    folder.with_suffix(".md").write_text(text + "\n")
    _draw(records, recipes, folder.with_suffix(".svg"))
    return text


def _last(aurocs: list[float]) -> float:
    return aurocs[-1]


def _swing(aurocs: list[float]) -> float:
    """Mean absolute change from epoch to epoch over the last epochs."""
    return float(np.abs(np.diff(aurocs[-SWING_EPOCHS:])).mean())


def _values(records: list[Record], column: str, pick: Pick, score: str | None = None) -> np.ndarray:
    """Return one value a class and seed, ``(classes, seeds)`` with NaN where a run is missing."""
    chosen = [record for record in records if record["column"] == column]
    classes, seeds = _classes(records), sorted({record["seed"] for record in chosen})
    values = np.full((len(classes), len(seeds)), np.nan)
    for record in chosen:
        aurocs = record["scores"].get(score, [np.nan]) if score else record["auroc"]
        values[classes.index(record["abnormal_class"]), seeds.index(record["seed"])] = pick(aurocs)
    return values


def _classes(records: list[Record]) -> list[str]:
    return sorted({record["abnormal_class"] for record in records})


def _cell(values: np.ndarray) -> str:
    """Format mean and deviation over the seeds that have run."""
    found = values[~np.isnan(values)]
    return mean_and_deviation(found) if len(found) else ""


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Return a value for each seed of which every class has run."""
    means: np.ndarray = values[:, ~np.isnan(values).any(axis=0)].mean(axis=0)
    return means


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _head(name: str, columns: Sequence[str]) -> list[str]:
    return [_row(name, columns), "|---|" + "---|" * len(columns)]


def _table_of_columns(records: list[Record], columns: list[str]) -> str:
    """Lay out the last epoch of each class, then means, the best on the test set, and the swing."""
    lines = _head("abnormal class", columns)
    values = [_values(records, column, _last) for column in columns]
    for row, name in enumerate(_classes(records)):
        lines.append(_row(name, (_cell(of_column[row]) for of_column in values)))
    for label, pick in (
        ("**mean, last epoch**", _last),
        ("mean, best epoch on the test set", max),
        (f"mean change between the last {SWING_EPOCHS} epochs", _swing),
    ):
        picked = (_values(records, column, pick) for column in columns)
        lines.append(_row(label, (_cell(_mean_over_classes(of_column)) for of_column in picked)))
    return "\n".join(lines)


def _table_of_scores(records: list[Record], columns: list[str]) -> str:
    """Lay out the mean of the last epoch by every score that the same trainings serve."""
    scores = sorted({score for record in records if record["column"] in columns for score in record["scores"]})
    lines = _head("mean, last epoch, by score", columns)
    for score in scores:
        values = (_values(records, column, _last, score) for column in columns)
        lines.append(_row(score, (_cell(_mean_over_classes(of_column)) for of_column in values)))
    return "\n".join(lines)


def _table_of_levers(records: list[Record], levers: list[str]) -> str:
    """Lay out what each lever changes, as means over the classes and seeds that it has run."""
    lines = _head("lever", ["with it", "default", "difference", "classes", "seeds"])
    by_run = {(record["column"], record["abnormal_class"], record["seed"]): record["auroc"] for record in records}
    for lever in levers:
        runs = sorted(run for column, *run in by_run if column == lever and ("default", *run) in by_run)
        if not runs:
            continue
        with_it, without = (np.mean([_last(by_run[(column, *run)]) for run in runs]) for column in (lever, "default"))
        classes, seeds = (", ".join(sorted({str(part) for part in parts})) for parts in zip(*runs, strict=True))
        lines.append(_row(lever, [f"{with_it:.3f}", f"{without:.3f}", f"{with_it - without:+.3f}", classes, seeds]))
    return "\n".join(lines)


def _table_of_detectors(records: list[Record], rivals: list[str]) -> str:
    """Lay out the last epoch of each class, the means, how far each is from ours, and where each is the best."""
    columns = ["default", *rivals]
    lines = _head("abnormal class", columns)
    values = {column: _values(records, column, _last) for column in columns}
    of_class = np.stack([np.nanmean(values[column], axis=1) for column in columns], axis=1)
    for row, name in enumerate(_classes(records)):
        lines.append(_row(name, (_cell(values[column][row]) for column in columns)))
    means = {column: _mean_over_classes(values[column]) for column in columns}
    ours = means["default"].mean()
    winners = np.nan_to_num(of_class, nan=-1).argmax(axis=1)  # What has not run has not won.
    lines.append(_row("**mean**", (_cell(means[column]) for column in columns)))
    differences = (f"{means[column].mean() - ours:+.3f}" if means[column].size else "" for column in rivals)
    lines.append(_row("against default", ["", *differences]))
    lines.append(_row("classes where it is the best", (str((winners == place).sum()) for place in range(len(columns)))))
    return "\n".join(lines)


def _draw(records: list[Record], columns: list[str], path: Path) -> None:
    """Draw the last epoch of each class with error bars over seeds, in the manner of the paper's Fig. 4."""
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = path.stem  # The same figure is the same file.
    figure, axes = plt.subplots(figsize=(9, 4))
    for column in columns:
        values = _values(records, column, _last)
        deviation = np.nanstd(values, axis=1, ddof=1) if values.shape[1] > 1 else None
        axes.errorbar(_classes(records), np.nanmean(values, axis=1), deviation, marker="o", capsize=4, label=column)
    axes.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="abnormal class", ylabel="image AUROC, last epoch", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})

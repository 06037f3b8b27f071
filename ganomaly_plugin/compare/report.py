# SPDX-License-Identifier: Apache-2.0
"""The files of a comparison that people and programs read, written from the records of its runs."""

import base64
import io
import json
import os
import platform
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib import colormaps
from pandas import DataFrame
from PIL import Image

from ganomaly_plugin.compare import figures
from ganomaly_plugin.compare.metrics import Array, Interval
from ganomaly_plugin.compare.summary import LAST_EPOCHS, MEAN, RESAMPLES, Result, Summary
from ganomaly_plugin.compare.timing import BATCH, TimedExport

EACH_KIND = 3
"""Images of each kind in a gallery: normal and anomalous ones with the lowest and the highest scores."""
TITLE = "Comparison of anomaly detectors"
EPOCH_HEADS = ("last epoch", "best epoch on the test set, selected on it", f"mean change, last {LAST_EPOCHS} epochs")


def write_report(folder: Path, summary: Summary, timings: list[TimedExport]) -> None:
    """Write ``results.csv``, ``results.json``, ``report.md``, ``table.tex`` and ``report.html`` into a folder.

    Args:
        folder: The comparison's folder.
        summary: Its figures.
        timings: Its timings.
    """
    (folder / "results.csv").write_text(_csv(summary))
    (folder / "results.json").write_text(json.dumps(_json(summary, timings), indent=1) + "\n")
    (folder / "report.md").write_text(_markdown(summary, timings))
    (folder / "table.tex").write_text(_latex(summary))
    (folder / "report.html").write_text(_html(summary, timings))


def machine() -> str:
    """Describe the machine in a few words."""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _csv(summary: Summary) -> str:
    """Return one line for each figure."""
    names = [*("dataset", "category", "model", "metric"), *Interval._fields]
    differences = [f"difference_{name}" for name in Interval._fields]
    lines = [(*row[:4], *row.value, *(row.difference or [None] * len(differences))) for row in summary.rows]
    return str(DataFrame(lines, columns=[*names, *differences]).to_csv(index=False))


def _json(summary: Summary, timings: list[TimedExport]) -> dict[str, Any]:
    """Return everything: configuration, runs with hashes and versions, figures and timings."""
    return {
        "config": summary.grid.config,
        "reference": summary.grid.reference,
        "machine": machine(),
        "resamples": RESAMPLES,
        "runs": [
            {**asdict(result.run), "result": result.record or None, "failure": result.reason or None}
            for result in summary.results
        ],
        "figures": [
            row._asdict()
            | {"value": _without_nan(row.value), "difference": row.difference and _without_nan(row.difference)}
            for row in summary.rows
        ],
        "timings": [_without_nan(timing) for timing in timings],
    }


def _without_nan(values: Interval | TimedExport) -> dict[str, Any]:
    """Leave out what is not known, for which JSON has no number."""
    return {name: value for name, value in values._asdict().items() if value == value}


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    # pandas would need one more package, tabulate, for these two lines.
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _value(summary: Summary, dataset: str, category: str, model: str, metric: str) -> str:
    return str(summary.value(dataset, category, model, metric) or "-")


def _markdown(summary: Summary, timings: list[TimedExport]) -> str:
    reference, models = summary.grid.reference, summary.grid.models
    parts = [
        f"# {TITLE}\n",
        "Mean over categories and seeds ± standard deviation over seeds, from raw scores after the last epoch. Beside "
        f"it the difference to {reference} with its 95 % interval, from a paired bootstrap over test images and seeds. "
        "Bold: significantly better than every other model.\n",
    ]
    for dataset, categories in summary.categories.items():
        metrics, of_epochs = summary.metrics(dataset), summary.metrics(dataset, of_epochs=True)
        lines = []
        for model in models:
            line = [model]
            for metric in metrics:
                text = _value(summary, dataset, MEAN, model, metric)
                found = summary.difference(dataset, MEAN, model, reference, metric)
                line.append(f"**{text}**" if summary.leads(dataset, model, metric) else text)
                line.append(f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})" if found else "")
            lines.append(line)
        heads = [head for metric in metrics for head in (metric, f"difference to {reference}")]
        parts += [f"## {dataset}\n", _table(["model", *heads], lines)]
        if len(categories) > 1 and metrics:
            lines = [[model, *(_value(summary, dataset, name, model, metrics[0]) for name in categories)]
                     for model in models]  # fmt: skip
            parts += [f"### {metrics[0]} by category\n", _table(["model", *categories], lines)]
        if of_epochs:
            lines = [[model, *(_value(summary, dataset, MEAN, model, name) for name in ["image_AUROC", *of_epochs])]
                     for model in models]  # fmt: skip
            parts += ["### image_AUROC over the epochs\n", _table(["model", *EPOCH_HEADS], lines)]
    if timings:
        head = ["model", "dataset", "format", "p50, ms", "p95, ms", "images/s", "MB"]
        lines = [
            [line.model, line.dataset, line.format, *([line.reason, "", "", ""] if line.reason else [
                f"{line.p50:.2f}", f"{line.p95:.2f}", f"{line.images_per_second:.0f}", f"{line.megabytes:.1f}"])]
            for line in timings
        ]  # fmt: skip
        parts += ["## Timings\n", _table(head, lines)]
    if failures := _failures(summary):
        parts += ["## Failures\n", "\n".join(f"- {title}: {reason}" for title, reason in failures) + "\n"]
    return "\n".join([*parts, f"{machine()}.\n"])


def _latex(summary: Summary) -> str:
    """Return image AUROCs as a table for ``booktabs``."""

    def text(dataset: str, model: str) -> str:
        value = _value(summary, dataset, MEAN, model, "image_AUROC").replace("±", r"$\pm$")
        return rf"\textbf{{{value}}}" if summary.leads(dataset, model, "image_AUROC") else value

    models, datasets = summary.grid.models, list(summary.categories)
    frame = DataFrame({dataset: [text(dataset, model) for model in models] for dataset in datasets}, models)
    style = frame.rename_axis(columns="Image AUROC").style
    for axis in (0, 1):
        style = style.format_index(escape="latex", axis=axis)
    return str(style.to_latex(hrules=True, column_format="l" + "c" * len(datasets)))


def _failures(summary: Summary) -> list[tuple[str, str]]:
    return [(result.run.title, result.reason) for result in summary.results if not result.record]


def _html(summary: Summary, timings: list[TimedExport]) -> str:
    models = summary.grid.models
    colours = {model: figures.colour(number) for number, model in enumerate(models)}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    points = [
        (line.model, line.format, line.p50, value.mean)
        for line in timings
        if not line.reason and (value := summary.value(line.dataset, MEAN, line.model, "image_AUROC"))
    ]
    images = {(r.run.dataset, r.run.category, r.run.seed): r.record["images"] for r in summary.done}
    return environment.get_template("report.html.jinja").render(
        title=TITLE,
        summary=summary,
        models=models,
        reference=summary.grid.reference,
        mean=MEAN,
        epoch_heads=EPOCH_HEADS,
        n_seeds=len({run.seed for run in summary.grid.runs}),
        resamples=RESAMPLES,
        failures=_failures(summary),
        mismatches=[" ".join(map(str, key)) for key, found in summary.hashes.items() if len(found) > 1],
        timings=timings,
        batch=BATCH,
        scatter=Markup(figures.scatter(points, colours)) if points else "",
        costs=_costs(summary),
        sections=[
            _section(summary, dataset, category, colours)
            for dataset, categories in summary.categories.items()
            for category in categories
            if any((result.run.dataset, result.run.category) == (dataset, category) for result in summary.done)
        ],
        data=[(key, images[key], ", ".join(sorted(found))) for key, found in summary.hashes.items()],
        machine=machine(),
        versions=next((result.record["versions"] for result in summary.done), {}),
        config=yaml.safe_dump({"compare": summary.grid.config}, sort_keys=False, default_flow_style=None),
    )


def _costs(summary: Summary) -> list[dict[Hashable, Any]]:
    """Average what training and test cost, by model and dataset."""
    names = ["fit_seconds", "test_seconds", "parameters", "peak_megabytes"]
    lines = [(r.run.model, r.run.dataset, *(r.record[name] for name in names)) for r in summary.done]
    frame = DataFrame(lines, columns=["model", "dataset", *names])
    return list(frame.groupby(["model", "dataset"], sort=False).mean().reset_index().to_dict("records"))


def _section(summary: Summary, dataset: str, category: str, colours: dict[str, str]) -> dict[str, Any]:
    """Describe a category: its curves, scores, pictures and losses, of the first seed that has results."""
    here = [result for result in summary.done if (result.run.dataset, result.run.category) == (dataset, category)]
    seed = min(result.run.seed for result in here)
    results = {result.run.model: result for result in here if result.run.seed == seed}
    arrays = {model: result.arrays() for model, result in results.items()}
    scored = {model: (found["scores"], found["labels"]) for model, found in arrays.items()}
    return {
        "dataset": dataset,
        "category": category,
        "anchor": re.sub(r"\W+", "-", f"{dataset}-{category}"),
        "seed": seed,
        "curves": Markup(figures.curves(scored, colours)),
        "histograms": Markup(figures.histograms(scored)),
        "losses": {
            model: Markup(figures.losses(recorded))
            for model, result in results.items()
            if (recorded := result.record["losses"])
        },
        **_gallery(results, scored, summary.grid.reference),
    }


def _gallery(results: dict[str, Result], scored: dict[str, tuple[Array, Array]], reference: str) -> dict[str, Any]:
    """Choose images by the reference's scores, and lay out every model's pictures of them."""
    chooser = reference if reference in results else next(iter(results))
    files = {model: dict(np.load(result.folder / "gallery.npz")) for model, result in results.items()}
    chosen = files[chooser]["chosen"]
    scores, labels = scored[chooser][0][chosen], scored[chooser][1][chosen]
    ascending = np.argsort(scores)
    kinds = {
        "normal, lowest score": [row for row in ascending if not labels[row]],
        "anomalous, highest score": [row for row in ascending[::-1] if labels[row]],
        "normal, highest score": [row for row in ascending[::-1] if not labels[row]],
        "anomalous, lowest score": [row for row in ascending if labels[row]],
    }
    columns = [(caption, row) for caption, rows in kinds.items() for row in rows[:EACH_KIND]]
    rows = [row for _, row in columns]
    lines = [_pictures("input", files[chooser]["images"], rows)]
    if "masks" in files[chooser]:
        lines.append(_pictures("ground truth", files[chooser]["masks"], rows))
    for model, pictures in files.items():
        model_scores, model_labels = scored[model]
        normal = np.sort(model_scores[model_labels == 0])
        fractions = np.searchsorted(normal, model_scores[chosen[rows]]) / max(len(normal), 1)
        texts = [f"{fraction:.0%}" for fraction in fractions]
        if "maps" in pictures:
            heat = colormaps["inferno"](pictures["maps"][..., 0], bytes=True)[..., :3]
            lines.append(_pictures(model, heat, rows, texts))
        else:
            lines.append({"name": model, "cells": [{"text": text} for text in texts]})
        if "reconstructions" in pictures:
            lines.append(_pictures(f"{model}, reconstruction", pictures["reconstructions"], rows))
    return {
        "gallery": {"columns": [{"caption": caption} for caption, _ in columns], "lines": lines},
        "drawn": len(chosen) if len(chosen) < len(scored[chooser][0]) else 0,
        "has_reconstructions": any("reconstructions" in pictures for pictures in files.values()),
    }


def _pictures(name: str, images: np.ndarray, rows: list[int], texts: list[str] | None = None) -> dict[str, Any]:
    texts = texts or [""] * len(rows)
    cells = [{"source": _data_url(images[row]), "text": text} for row, text in zip(rows, texts, strict=True)]
    return {"name": name, "cells": cells}


def _data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

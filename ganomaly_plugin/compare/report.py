# SPDX-License-Identifier: Apache-2.0
"""The files of a comparison that people and programs read, written from the records of its runs."""

import base64
import io
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
from ganomaly_plugin.compare.metrics import Array
from ganomaly_plugin.compare.record import Result, write_json
from ganomaly_plugin.compare.statistics import MIN_SEEDS, Estimate, Interval
from ganomaly_plugin.compare.summary import LAST_EPOCHS, MEAN, RESAMPLES, Row, Summary
from ganomaly_plugin.compare.timing import BATCH, TimedExport

EACH_KIND = 3
"""Images of each kind in a gallery: normal and anomalous ones with the lowest and the highest scores."""
TITLE = "Comparison of anomaly detectors"
EXPLANATION = (
    "Mean over categories and seeds ± standard deviation over seeds, from raw scores after the last epoch. Two 95 % "
    "intervals: over test images, for these seeds (bootstrap; images that categories or seeds share are drawn "
    f"together), and over seeds (paired t), which takes {MIN_SEEDS} seeds or more. Bold: better than every other model "
    "over seeds, p < 0.05 after Holm's correction for all pairs of models. An interval is of its figure alone, without "
    "correction."
)
"""What the tables show."""
EPOCH_HEADS = ("last epoch", "best epoch on the test set, selected on it", f"mean change, last {LAST_EPOCHS} epochs")


def write_report(folder: Path, summary: Summary, timings: list[TimedExport]) -> None:
    """Write ``results.csv``, ``results.json``, ``report.md``, ``table.tex`` and ``report.html`` into a folder.

    Args:
        folder: The comparison's folder.
        summary: Its figures.
        timings: Its timings.
    """
    (folder / "results.csv").write_text(_csv(summary))
    write_json(folder / "results.json", _json(summary, timings))
    (folder / "report.md").write_text(_markdown(summary, timings))
    (folder / "table.tex").write_text(_latex(summary))
    (folder / "report.html").write_text(_html(summary, timings))


def machine() -> str:
    """Describe the machine in a few words."""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def describe_tuning(summary: Summary) -> str:
    """Say which models' settings were chosen on test images, and on which, as far as the configuration does."""
    tuned = [
        f"{model} ({'; '.join(f'{dataset} ' + ', '.join(names) for dataset, names in chosen.items())})"
        for model, chosen in summary.grid.tuned_on.items()
        if chosen
    ]
    untuned = [model for model in summary.grid.models if not summary.grid.tuned_on.get(model)]
    parts = []
    if tuned:
        parts.append(f"Settings were chosen on test images: {', '.join(tuned)}.")
    if untuned:
        parts.append(f"The configuration names no settings chosen on test images for {', '.join(untuned)}.")
    for dataset, categories in summary.categories.items():
        if len(summary.tuning_categories(dataset)) == len(categories):
            parts.append(f"No category of {dataset} is free of it, so the figures favour the tuned models.")
    return " ".join(parts)


def _columns(figure: Estimate | None, prefix: str = "") -> dict[str, float | None]:
    """Name the numbers of a figure."""
    columns: dict[str, float | None] = {f"{prefix}{name}": getattr(figure, name, None) for name in ("mean", "std")}
    for name in ("over_images", "over_seeds"):
        for bound in Interval._fields:
            columns[f"{prefix}{bound}_{name}"] = getattr(getattr(figure, name, None), bound, None)
    return columns


def _numbers(row: Row) -> dict[str, Any]:
    """Return a line of the results; its p-value is corrected."""
    figures = _columns(row.value) | {"seeds": row.value.n_seeds} | _columns(row.difference, "difference_")
    return dict(zip(Row._fields[:4], row[:4], strict=True)) | figures | {"difference_p_value": row.p_value}


def _csv(summary: Summary) -> str:
    """Return one line for each figure."""
    return str(DataFrame([_numbers(row) for row in summary.rows]).to_csv(index=False))


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
        "figures": [_numbers(row) for row in summary.rows],
        "timings": [timing._asdict() for timing in timings],
    }


def _escape(text: str) -> str:
    """Escape a name or a reason for Markdown, where it stands in a table or a heading."""
    return re.sub(r"([\\`*{}\[\]<>|~$&#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _interval(interval: Interval | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _over_seeds(figure: Estimate, sign: str = "") -> str:
    """Return the interval over seeds, or why there is none."""
    if figure.over_seeds is not None:
        return _interval(figure.over_seeds, sign)
    return f"n/a: {figure.n_seeds} seed" + ("s" if figure.n_seeds > 1 else "")


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    # pandas would need one more package, tabulate, for these two lines.
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _value(summary: Summary, dataset: str, category: str, model: str, metric: str) -> str:
    return str(summary.value(dataset, category, model, metric) or "-")


def _markdown(summary: Summary, timings: list[TimedExport]) -> str:
    reference, models = summary.grid.reference, summary.grid.models
    parts = [f"# {TITLE}\n", f"{EXPLANATION}\n", f"{_escape(describe_tuning(summary))}\n"]
    for dataset, categories in summary.categories.items():
        metrics, of_epochs = summary.metrics(dataset), summary.metrics(dataset, of_epochs=True)
        means = summary.means(dataset)
        heads = [_escape(summary.mean_title(dataset, mean, metric)) for metric in metrics for mean in means]
        lines = [
            [_escape(model), *(_bold(summary, dataset, mean, model, metric) for metric in metrics for mean in means)]
            for model in models
        ]
        parts += [f"## {_escape(dataset)}\n", _table(["model", *heads], lines)]
        for metric in metrics:
            heads = ["model", "mean", "over test images, these seeds", "over seeds"]
            heads += [f"difference to {_escape(reference)}", *heads[2:], "p, corrected"]
            for mean in means:
                title = _escape(summary.mean_title(dataset, mean, metric))
                lines = [_line(summary, dataset, mean, model, metric) for model in models]
                parts += [f"### {title}\n", _table(heads, lines)]
        if len(categories) > 1 and metrics:
            lines = [[_escape(model), *(_value(summary, dataset, name, model, metrics[0]) for name in categories)]
                     for model in models]  # fmt: skip
            parts += [f"### {metrics[0]} by category\n", _table(["model", *map(_escape, categories)], lines)]
        if of_epochs:
            names = ["image_AUROC", *of_epochs]
            lines = [[_escape(model), *(_value(summary, dataset, MEAN, model, name) for name in names)]
                     for model in models]  # fmt: skip
            parts += ["### image_AUROC over the epochs\n", _table(["model", *EPOCH_HEADS], lines)]
    if timings:
        head = ["model", "dataset", "format", "p50, ms", "p95, ms", "images/s", "MB"]
        lines = [[_escape(line.model), _escape(line.dataset), line.format, *_timing(line)] for line in timings]
        parts += ["## Timings\n", _table(head, lines)]
    if failures := _failures(summary):
        parts += [
            "## Failures\n",
            "\n".join(f"- {_escape(title)}: {_escape(reason)}" for title, reason in failures) + "\n",
        ]
    return "\n".join([*parts, f"{machine()}.\n"])


def _timing(line: TimedExport) -> list[str]:
    if line.reason:
        return [_escape(line.reason), "", "", ""]
    return [f"{line.p50:.2f}", f"{line.p95:.2f}", f"{line.images_per_second:.0f}", f"{line.megabytes:.1f}"]


def _bold(summary: Summary, dataset: str, mean: str, model: str, metric: str) -> str:
    text = _value(summary, dataset, mean, model, metric)
    return f"**{text}**" if summary.leads(dataset, model, metric, mean) else text


def _line(summary: Summary, dataset: str, mean: str, model: str, metric: str) -> list[str]:
    """Return a model's line in the table of a metric: the figure and its difference to the reference."""
    reference = summary.grid.reference
    line = [_escape(model), _bold(summary, dataset, mean, model, metric)]
    value = summary.value(dataset, mean, model, metric)
    difference = summary.difference(dataset, mean, model, reference, metric)
    p_value = summary.p_value(dataset, mean, model, reference, metric)
    line += [_interval(value.over_images), _over_seeds(value)] if value else ["", ""]
    if difference is None:
        return [*line, "", "", "", ""]
    line += [f"{difference.mean:+.3f}", _interval(difference.over_images, "+"), _over_seeds(difference, "+")]
    return [*line, _p_value(p_value)]


def _latex(summary: Summary) -> str:
    """Return image AUROCs as a table for ``booktabs``."""

    def text(dataset: str, mean: str, model: str) -> str:
        value = _value(summary, dataset, mean, model, "image_AUROC").replace("±", r"$\pm$")
        return rf"\textbf{{{value}}}" if summary.leads(dataset, model, "image_AUROC", mean) else value

    models = summary.grid.models
    columns = {
        summary.mean_title(dataset, mean, dataset): [text(dataset, mean, model) for model in models]
        for dataset in summary.categories
        for mean in summary.means(dataset)
    }
    style = DataFrame(columns, models).rename_axis(columns="Image AUROC").style
    for axis in (0, 1):
        style = style.format_index(escape="latex", axis=axis)
    return str(style.to_latex(hrules=True, column_format="l" + "c" * len(columns)))


def _failures(summary: Summary) -> list[tuple[str, str]]:
    return [(result.run.title, result.reason) for result in summary.results if not result.record]


def _html(summary: Summary, timings: list[TimedExport]) -> str:
    models = summary.grid.models
    colours = {model: figures.colour(number) for number, model in enumerate(models)}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    points = [
        (line.model, line.format, line.p50, value.mean)
        for line in timings
        if line.p50 is not None and (value := summary.value(line.dataset, MEAN, line.model, "image_AUROC"))
    ]
    images = {(r.run.dataset, r.run.category, r.run.seed): r.record["images"] for r in summary.done}
    return environment.get_template("report.html.jinja").render(
        title=TITLE,
        summary=summary,
        models=models,
        reference=summary.grid.reference,
        mean=MEAN,
        explanation=EXPLANATION,
        tuning=describe_tuning(summary),
        interval=_interval,
        over_seeds=_over_seeds,
        p_text=_p_value,
        epoch_heads=EPOCH_HEADS,
        n_seeds=len({run.seed for run in summary.grid.runs}),
        resamples=RESAMPLES,
        min_seeds=MIN_SEEDS,
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
    names = ["fit_seconds", "test_seconds", "parameters", "peak_megabytes", "peak_gpu_megabytes"]
    lines = [(r.run.model, r.run.dataset, *(r.record[name] for name in names)) for r in summary.done]
    frame = DataFrame(lines, columns=["model", "dataset", *names]).astype(dict.fromkeys(names, float))
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

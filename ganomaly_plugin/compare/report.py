# SPDX-License-Identifier: Apache-2.0
"""The files of a comparison that people and programs read, written from what its cells left."""

import base64
import csv
import io
import json
import os
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from ganomaly_plugin.compare import figures
from ganomaly_plugin.compare.metrics import Array, Interval
from ganomaly_plugin.compare.summary import MEAN, RESAMPLES, Outcome, Summary
from ganomaly_plugin.compare.timing import BATCH

EACH_KIND = 3
"""Images of each kind in a gallery: rightly and wrongly taken for normal and for anomalous."""
TITLE = "Comparison of anomaly detectors"


class TimedExport(NamedTuple):
    """A line of the table of timings."""

    model: str
    dataset: str
    form: str
    megabytes: float
    p50: float
    p95: float
    images_per_second: float
    reason: str


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
    """One line a figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    kinds = [*Interval._fields, *(f"difference_{name}" for name in Interval._fields)]
    writer.writerow(["dataset", "category", "model", "measure", *kinds])
    for row in summary.rows:
        difference = row.difference or ("",) * len(Interval._fields)
        writer.writerow([row.dataset, row.category, row.model, row.measure, *row.value, *difference])
    return buffer.getvalue()


def _json(summary: Summary, timings: list[TimedExport]) -> dict[str, Any]:
    """Everything: configuration, cells with hashes and versions, figures and timings."""
    return {
        "config": summary.grid.config,
        "reference": summary.grid.reference,
        "machine": machine(),
        "resamples": RESAMPLES,
        "cells": [
            {**asdict(outcome.cell), "result": outcome.result, "failure": outcome.reason or None}
            for outcome in summary.outcomes
        ],
        "figures": [
            {
                **row._asdict(),
                "value": row.value._asdict(),
                "difference": row.difference._asdict() if row.difference else None,
            }
            for row in summary.rows
        ],
        "timings": [timing._asdict() for timing in timings],
    }


def _plus_minus(value: Interval | None, sign: str = "±") -> str:
    if value is None:
        return "-"
    return f"{value.mean:.3f}" + (f" {sign} {value.deviation:.3f}" if value.deviation == value.deviation else "")


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _markdown(summary: Summary, timings: list[TimedExport]) -> str:
    reference = summary.grid.reference
    parts = [
        f"# {TITLE}\n",
        "Mean over categories and seeds ± deviation over seeds, from raw scores after the last epoch. In brackets the "
        f"difference to {reference} with its 95 % interval, from a paired bootstrap over test images and seeds. Bold: "
        "better than every other model by more than chance.\n",
    ]
    for dataset in summary.categories:
        measures = summary.measures(dataset)
        lines = []
        for model in summary.grid.models:
            cells = []
            for measure in measures:
                text = _plus_minus(summary.value(dataset, MEAN, model, measure))
                text = f"**{text}**" if summary.leads(dataset, model, measure) else text
                if model != reference and (found := summary.difference(dataset, MEAN, model, reference, measure)):
                    text += f" ({found.mean:+.3f}, {found.low:+.3f} to {found.high:+.3f})"
                cells.append(text)
            lines.append([model, *cells])
        parts += [f"## {dataset}\n", _table(["model", *measures], lines)]
    parts += ["## Timings\n"] if timings else []
    if timings:
        head = ["model", "dataset", "form", "p50, ms", "p95, ms", "images/s", "MB"]
        lines = [
            [line.model, line.dataset, line.form, *([line.reason, "", "", ""] if line.reason else [
                f"{line.p50:.2f}", f"{line.p95:.2f}", f"{line.images_per_second:.0f}", f"{line.megabytes:.1f}"])]
            for line in timings
        ]  # fmt: skip
        parts.append(_table(head, lines))
    failures = _failures(summary)
    if failures:
        parts += ["## Failures\n", "\n".join(f"- {title}: {reason}" for title, reason in failures) + "\n"]
    return "\n".join([*parts, f"{machine()}.\n"])


def _latex(summary: Summary) -> str:
    """Lay image AUROCs out as a table for ``booktabs``."""
    measure = "image_AUROC"
    datasets = list(summary.categories)
    lines = []
    for model in summary.grid.models:
        cells = []
        for dataset in datasets:
            text = _plus_minus(summary.value(dataset, MEAN, model, measure), r"$\pm$")
            cells.append(rf"\textbf{{{text}}}" if summary.leads(dataset, model, measure) else text)
        lines.append(" & ".join([_escape(model), *cells]) + r" \\")
    return "\n".join(
        [
            r"\begin{tabular}{l" + "c" * len(datasets) + "}",
            r"\toprule",
            " & ".join(["Image AUROC", *(_escape(dataset) for dataset in datasets)]) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escape(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _failures(summary: Summary) -> list[tuple[str, str]]:
    return [(outcome.cell.title, outcome.reason) for outcome in summary.outcomes if outcome.result is None]


def _html(summary: Summary, timings: list[TimedExport]) -> str:
    models = summary.grid.models
    colours = {model: figures.colour(number) for number, model in enumerate(models)}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=False)
    points = [
        (line.model, line.form, line.p50, value.mean)
        for line in timings
        if not line.reason and (value := summary.value(line.dataset, MEAN, line.model, "image_AUROC"))
    ]
    return environment.get_template("report.html.jinja").render(
        title=TITLE,
        models=models,
        reference=summary.grid.reference,
        categories=summary.categories,
        mean=MEAN,
        n_cells=len(summary.grid.cells),
        n_seeds=len({cell.seed for cell in summary.grid.cells}),
        resamples=RESAMPLES,
        failures=_failures(summary),
        mismatches=[" ".join(map(str, key)) for key, found in summary.hashes.items() if len(found) > 1],
        measures_of={dataset: summary.measures(dataset) for dataset in summary.categories},
        value=summary.value,
        difference=summary.difference,
        leads=summary.leads,
        duel=summary.duel,
        timings=timings,
        batch=BATCH,
        scatter=Markup(figures.scatter(points, colours, "image AUROC")) if points else "",
        costs=_costs(summary),
        sections=_sections(summary, colours),
        data=[
            {
                "dataset": dataset,
                "category": category,
                "seed": seed,
                "images": _image_numbers(summary, dataset, category, seed),
                "hashes": ", ".join(sorted(found)),
            }
            for (dataset, category, seed), found in summary.hashes.items()
        ],
        machine=machine(),
        versions=next(((outcome.result or {})["versions"] for outcome in summary.done), {}),
        config=yaml.safe_dump({"compare": summary.grid.config}, sort_keys=False, default_flow_style=None),
    )


def _image_numbers(summary: Summary, dataset: str, category: str, seed: int) -> str:
    for outcome in summary.done:
        cell = outcome.cell
        if (cell.dataset, cell.category, cell.seed) == (dataset, category, seed):
            numbers = (outcome.result or {})["images"]
            return f"{numbers['train']:,} / {numbers['test']:,}"
    return ""


def _costs(summary: Summary) -> list[dict[str, Any]]:
    """Average what training and test cost, by model and dataset."""
    lines = []
    for model in summary.grid.models:
        for dataset in summary.categories:
            found = [
                outcome.result or {}
                for outcome in summary.done
                if (outcome.cell.model, outcome.cell.dataset) == (model, dataset)
            ]
            if found:
                names = ("fit_seconds", "test_seconds", "parameters", "peak_megabytes")
                means = {name: float(np.mean([result[name] for result in found])) for name in names}
                lines.append({"model": model, "dataset": dataset, **means, "parameters": int(means["parameters"])})
    return lines


def _sections(summary: Summary, colours: dict[str, str]) -> list[dict[str, Any]]:
    """Describe each category: its curves, scores, pictures and losses, of the first seed that has results."""
    sections = []
    for dataset, categories in summary.categories.items():
        for category in categories:
            here = [o for o in summary.done if (o.cell.dataset, o.cell.category) == (dataset, category)]
            if not here:
                continue
            seed = min(outcome.cell.seed for outcome in here)
            outcomes = {outcome.cell.model: outcome for outcome in here if outcome.cell.seed == seed}
            scored = {model: (arrays["scores"], arrays["labels"]) for model, outcome in outcomes.items()
                      if (arrays := outcome.arrays())}  # fmt: skip
            found = _gallery(outcomes, scored, summary.grid.reference)
            sections.append(
                {
                    "dataset": dataset,
                    "category": category,
                    "title": f"{dataset}, {category}",
                    "anchor": re.sub(r"\W+", "-", f"{dataset}-{category}"),
                    "seed": seed,
                    "measures": summary.measures(dataset),
                    "curves": Markup(figures.curves(scored, colours)),
                    "histograms": Markup(figures.histograms(scored)),
                    "losses": {
                        model: Markup(figures.losses(recorded))
                        for model, outcome in outcomes.items()
                        if (recorded := (outcome.result or {})["losses"])
                    },
                    **found,
                }
            )
    return sections


def _gallery(outcomes: dict[str, Outcome], scored: dict[str, tuple[Array, Array]], reference: str) -> dict[str, Any]:
    """Choose images by the reference's scores, and lay out every model's pictures of them."""
    chooser = reference if reference in outcomes else next(iter(outcomes))
    files = {model: dict(np.load(outcome.folder / "gallery.npz")) for model, outcome in outcomes.items()}
    chosen = files[chooser]["chosen"]
    scores, labels = scored[chooser][0][chosen], scored[chooser][1][chosen]
    ascending = np.argsort(scores)
    kinds = {
        "normal, rightly": [row for row in ascending if not labels[row]],
        "anomalous, rightly": [row for row in ascending[::-1] if labels[row]],
        "normal, wrongly": [row for row in ascending[::-1] if not labels[row]],
        "anomalous, wrongly": [row for row in ascending if labels[row]],
    }
    columns = [(caption, row) for caption, rows in kinds.items() for row in rows[:EACH_KIND]]
    rows = [row for _, row in columns]
    lines = [_pictures("input", files[chooser]["images"], rows)]
    if "masks" in files[chooser]:
        lines.append(_pictures("ground truth", files[chooser]["masks"], rows))
    for model, pictures in files.items():
        model_scores, model_labels = scored[model]
        normal = np.sort(model_scores[model_labels == 0])
        shares = np.searchsorted(normal, model_scores[chosen[rows]]) / max(len(normal), 1)
        texts = [f"{share:.0%}" for share in shares]
        if "maps" in pictures:
            lines.append(_pictures(model, _heat(pictures["maps"]), rows, texts))
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


def _heat(maps: np.ndarray) -> np.ndarray:
    """Colour grey maps ``(N, H, W, 1)``."""
    from matplotlib import colormaps

    coloured: np.ndarray = (colormaps["inferno"](maps[..., 0] / 255)[..., :3] * 255).astype(np.uint8)
    return coloured


def _data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

# SPDX-License-Identifier: Apache-2.0
"""Figures of a comparison's report, as SVG text."""

import io
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from ganomaly_plugin.compare.metrics import Array

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"),
    *("#332288", "#882255", "#ddcc77", "#6b4c1e"),
)
"""Colours that colour-blind readers can tell apart: Okabe and Ito's, then some of Tol's and a brown."""
POINTS = 200
"""Points of a curve; more make no visible difference."""


def colour(number: int) -> str:
    """Return the colour of the model with this number."""
    return COLOURS[number % len(COLOURS)]


def curves(scored: Mapping[str, tuple[Array, Array]], colours: Mapping[str, str]) -> str:
    """Draw ROC and precision-recall curves of several models side by side.

    Args:
        scored: Raw scores and labels by model.
        colours: Colour by model.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for model, (scores, labels) in scored.items():
        false, true, _ = roc_curve(labels, scores)
        precision, recall, _ = precision_recall_curve(labels, scores)
        for axes, x, y in ((left, false, true), (right, recall[::-1], precision[::-1])):
            kept = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
            axes.plot(x[kept], y[kept], color=colours[model], label=_plain(model), linewidth=1.5)
    left.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle="--")
    left.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(0, 1), ylim=(0, 1.01))
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    left.legend(fontsize="small", loc="lower right")
    return _svg(figure)


def histograms(scored: Mapping[str, tuple[Array, Array]]) -> str:
    """Draw each model's raw scores of normal and anomalous images, as the GANomaly paper does (its Fig. 6)."""
    figure, grid = _panels(len(scored), 3, 2.2)
    for axes, (model, (scores, labels)) in zip(grid, scored.items(), strict=True):
        edges = np.linspace(scores.min(), np.quantile(scores, 0.995), 41).tolist()
        for label, name, shade in ((0, "normal", "#0072b2"), (1, "anomalous", "#d55e00")):
            axes.hist(scores[labels == label], edges, density=True, alpha=0.6, color=shade, label=name)
        axes.set_title(_plain(model), fontsize="small")
        axes.set(yticks=[])
        axes.tick_params(labelsize="x-small")
    grid[0].legend(fontsize="x-small")
    return _svg(figure)


def scatter(points: Sequence[tuple[str, str, float, float]], colours: Mapping[str, str]) -> str:
    """Draw accuracy against latency.

    Args:
        points: Model, format of the export, milliseconds of one image, and image AUROC.
        colours: Colour by model.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    markers = dict(zip(dict.fromkeys(point[1] for point in points), "osD^v", strict=False))
    for model, name, latency, accuracy in points:
        axes.scatter(latency, accuracy, color=colours[model], marker=markers[name], s=45)
    for model in dict.fromkeys(point[0] for point in points):
        axes.scatter([], [], color=colours[model], label=_plain(model))
    for name, marker in markers.items():
        axes.scatter([], [], color="#555555", marker=marker, label=name)
    axes.set_xscale("log")
    axes.set(xlabel="milliseconds an image, batch 1", ylabel="image AUROC")
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
    return _svg(figure)


def losses(recorded: Mapping[str, Sequence[float]]) -> str:
    """Draw losses over the epochs, each on its own scale.

    Args:
        recorded: One value an epoch by the loss's name.
    """
    figure, grid = _panels(len(recorded), 4, 1.8)
    for axes, (name, values) in zip(grid, recorded.items(), strict=True):
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[0], marker="." if len(values) < 20 else "")
        axes.set_title(name, fontsize="small")
        axes.tick_params(labelsize="x-small")
    return _svg(figure)


def _plain(name: str) -> str:
    """Keep matplotlib from reading a name as a formula."""
    return name.replace("$", r"\$")


def _panels(count: int, most_columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` small axes in rows of ``height`` inches."""
    columns = min(most_columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(8, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, number) for number in range(1, count + 1)]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # Several figures share a page, and so must not share the names of their parts.
    prefix = f"f{zlib.crc32(text.encode()):x}-"
    text = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{prefix}", text)
    return text[text.index("<svg") :]

# SPDX-License-Identifier: Apache-2.0
"""A picture of the scores that a threshold comes from."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ganomaly_plugin.edge.calibration import Calibration

_SIZE = (720, 360)
_MARGIN = 40
_BINS = 60
_GOOD, _BAD, _INK = (46, 125, 50), (198, 40, 40), (40, 40, 40)


def save_histogram(calibration: Calibration, path: Path) -> None:
    """Draw the fraction of good parts (green) and bad parts (red) by score, and the threshold."""
    scores = np.concatenate([calibration.good, calibration.bad, [calibration.threshold]])
    low, high = float(scores.min()), float(scores.max())
    high = high if high > low else low + 1e-6
    edges = np.linspace(low, high, _BINS + 1)
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    bottom, width = _SIZE[1] - _MARGIN, (_SIZE[0] - 2 * _MARGIN) / _BINS
    groups = [(calibration.good, _GOOD, "good"), (calibration.bad, _BAD, "bad")]
    fractions = [np.histogram(values, edges)[0] / max(len(values), 1) for values, _, _ in groups]
    height = (bottom - _MARGIN) / max(float(fraction.max()) for fraction in fractions)
    for number, (fraction, (values, colour, name)) in enumerate(zip(fractions, groups, strict=True)):
        for index, part in enumerate(fraction):
            left = _MARGIN + (index + number / 2) * width
            if part:
                pen.rectangle((left, bottom - part * height, left + width / 2 - 1, bottom), fill=colour)
        pen.text((_MARGIN + 130 * number, 8), f"{len(values)} {name} parts", fill=colour)
    place = _MARGIN + (calibration.threshold - low) / (high - low) * _BINS * width
    pen.line((place, _MARGIN, place, bottom), fill=_INK)
    pen.text((place, 24), f"{calibration.threshold:.4g}", fill=_INK, anchor="ma")
    pen.line((_MARGIN, bottom, _SIZE[0] - _MARGIN, bottom), fill=_INK)
    pen.text((_MARGIN, bottom + 8), f"{low:.4g}", fill=_INK, anchor="ma")
    pen.text((_SIZE[0] - _MARGIN, bottom + 8), f"{high:.4g}", fill=_INK, anchor="ma")
    pen.text((_SIZE[0] / 2, bottom + 20), "score", fill=_INK, anchor="ma")
    image.save(path)

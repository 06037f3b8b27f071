# SPDX-License-Identifier: Apache-2.0
"""Pictures of where an image is anomalous."""

import hashlib
import os
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ganomaly_plugin.edge.detector import Prediction
from ganomaly_plugin.edge.image_input import limit_sides, to_input

_LARGEST_SIDE = 2048
"""Sides of a picture in pixels; larger images are shown smaller."""
_LONGEST_NAME = 255
"""Bytes of a name that file systems take."""


def save_map(prediction: Prediction, name: str, folder: Path) -> None:
    """Save the map over its image, red where anomalous, under the image's path.

    Raises:
        ValueError: If the model gives no map.
    """
    if prediction.anomaly_map is None:
        msg = "The model gives no anomaly map: leave --save-maps out."
        raise ValueError(msg)
    pixels = to_input(prediction.source, limit_sides(_LARGEST_SIDE), sys.maxsize)[0].transpose(1, 2, 0)
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    heat = np.clip(prediction.anomaly_map, 0, 1)
    colours = np.stack([heat, np.minimum(heat, 1 - heat), 1 - heat], axis=-1)
    overlay = Image.fromarray((colours * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    target = folder / map_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.blend(image, overlay, 0.5).save(target)


def map_path(name: str) -> Path:
    """Return where the map of an image goes, relative to the folder of maps: no two names share a place.

    Maps lie as their images do. What leads out of the folder is written like the special characters of a URL: the root
    of an absolute path as ``%2F``, ``..`` as ``%2E%2E``, and therefore a per cent sign as ``%25``. A name that would be
    too long with this ends in a hash.
    """
    path = Path(name)
    root = [quote(path.anchor, safe="")] if path.anchor else []
    parts = ["%2E%2E" if part == ".." else part.replace("%", "%25") for part in path.relative_to(path.anchor).parts]
    return Path(*map(_shorten, [*root, *parts[:-1], f"{parts[-1]}.png"]))


def _shorten(name: str) -> str:
    """Return a name that file systems take: the end of a longer one becomes a hash of it."""
    content = os.fsencode(name)
    if len(content) <= _LONGEST_NAME:
        return name
    suffix = f"-{hashlib.sha256(content).hexdigest()[:16]}.png"
    return content[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix

# SPDX-License-Identifier: Apache-2.0
"""The files of a finished run, and JSON that every parser reads."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ganomaly_plugin.compare.grid import Run
from ganomaly_plugin.compare.metrics import Array

RECORD = {"data", "epochs", "exports", "fit_seconds", "images", "input_size", "losses", "metrics", "parameters"} | {
    *("peak_gpu_megabytes", "peak_megabytes", "test_seconds", "versions"),
}
"""What ``result.json`` holds."""
ARRAYS = {"scores.npz": {"images", "labels", "scores"}, "gallery.npz": {"chosen", "images"}}
"""What the other files hold at least."""


class Result(NamedTuple):
    """A run and its record, which is empty if it failed, and the reason then."""

    run: Run
    folder: Path
    record: dict[str, Any]
    reason: str = ""

    def arrays(self) -> dict[str, Array]:
        """Raw scores, labels and hashes of the test images and, where there are masks, their pixel counts."""
        with np.load(self.folder / "scores.npz") as file:
            return dict(file)


def read_result(folder: Path, run: Run, reason: str = "") -> Result:
    """Read a run's record, if it has one."""
    path = folder / run.path
    file = path / "result.json"
    return Result(run, path, json.loads(file.read_text()) if file.exists() else {}, reason)


def find_damage(folder: Path) -> str:
    """Say what is wrong with the files of a finished run: the first that is missing or cannot be read, or nothing.

    Args:
        folder: The run's own folder.
    """
    file = folder / "run.json"
    try:
        Run.from_json(file.read_text())
        file = folder / "result.json"
        record = json.loads(file.read_text())
        if not isinstance(record, dict) or not record.keys() >= RECORD:
            return f"{file.name} is incomplete"
        for name, expected in ARRAYS.items():
            file = folder / name
            with np.load(file) as arrays:
                lacking = sorted(expected - dict(arrays).keys())
            if lacking:
                return f"{name} lacks {', '.join(lacking)}"
        paths = [export["path"] for export in record["exports"].values() if "path" in export]
        return next((f"{path} is missing" for path in paths if not (folder / path).exists()), "")
    except Exception as error:  # Damaged archives raise what they please.
        return f"{file.name} cannot be read ({type(error).__name__})"


def write_json(file: Path, content: Any) -> None:
    """Write JSON without NaN and infinities, which it has no numbers for: they become ``null``."""
    file.write_text(json.dumps(_without_nan(content), indent=1, allow_nan=False, default=str) + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return content

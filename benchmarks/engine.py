# SPDX-License-Identifier: Apache-2.0
"""anomalib's engine for the trainings of the benchmarks."""

from pathlib import Path
from typing import Any

from anomalib.engine import Engine


def build_engine(root: str | Path, max_epochs: int, **kwargs: Any) -> Engine:
    """Build a quiet engine.

    Args:
        root: Where it keeps its checkpoints.
        max_epochs: Length of the training.
        **kwargs: Further arguments of the trainer, in place of those set here.
    """
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
    } | kwargs
    return Engine(default_root_dir=root, max_epochs=max_epochs, enable_model_summary=False, **settings)

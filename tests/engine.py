# SPDX-License-Identifier: Apache-2.0
"""anomalib's engine for short trainings, the same for all tests."""

from pathlib import Path
from typing import Any

from anomalib.engine import Engine


def build_engine(root: Path, **kwargs: Any) -> Engine:
    """Build an engine without progress bars that keeps its results below ``root``."""
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False} | kwargs
    return Engine(default_root_dir=root, enable_model_summary=False, num_sanity_val_steps=0, **settings)

# SPDX-License-Identifier: Apache-2.0
"""Every model under distributed data parallel (DDP) training, where one process sees no normal validation image."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    entry.name for entry in entry_points(group="anomalib.models") if entry.module.startswith("ganomaly_plugin")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of all models, one after the other."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = Path(__file__).with_name("ddp_run.py")
    result = subprocess.run(
        [sys.executable, str(script), str(folder), *NAMES],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fit_validate_test(folder: Path, name: str) -> None:
    """Both processes end with the same weights and thresholds, and report the metrics of all images of both."""
    first, second = (torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not first["gt_label"].any()
    assert second["gt_label"].all()
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    for key in ("image_threshold", "pixel_threshold", "validated", "tested"):
        assert first[key] == second[key], key

    def gather(field: str) -> Any:
        return torch.cat([first[field], second[field]])

    labels, raw = gather("gt_label"), gather("raw_score")
    assert first["tested"]["image_AUROC"] == pytest.approx(roc_auc_score(labels, raw))
    assert first["tested"]["image_AveragePrecision"] == pytest.approx(average_precision_score(labels, raw))
    assert first["tested"]["image_F1Score"] == pytest.approx(f1_score(labels, raw > first["image_threshold"]))
    assert first["validated"]["val_score"] == pytest.approx(float(first["raw_score"].mean()), rel=1e-5)

# SPDX-License-Identifier: Apache-2.0
"""Kept results of a comparison say what its report says."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import keep, tables
from ganomaly_plugin.compare.summary import BEST_EPOCH, CHANGE, MEAN

from .conftest import Compared

pytestmark = pytest.mark.slow


def test_keep(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that finished, with the figures of the report; exports that were timed, with their times."""
    monkeypatch.setattr(sys, "argv", ["keep", str(compared.folder), "--name", "small", "--output", str(tmp_path)])
    keep.main()
    runs = pd.read_csv(tmp_path / "small.csv", dtype={"category": str})
    done = {(result.run.model, result.run.seed) for result in compared.summary.done}
    assert {(run.model, run.seed) for run in runs.itertuples()} == done
    for model in ("GANomaly", "Padim"):
        for metric in ("image_AUROC", BEST_EPOCH, CHANGE):
            value = compared.summary.value("digits", MEAN, model, metric)
            shown = "" if value is None else f"{value.mean:.3f} ± {value.std:.3f}"
            assert tables.figure(runs[runs["model"] == model], metric) == shown
    assert not runs[CHANGE].isna().all()
    timings = pd.read_csv(tmp_path / "small_timings.csv")
    assert set(zip(timings["model"], timings["format"], strict=True)) == {
        (model, kind) for model in ("GANomaly", "Padim") for kind in tables.FORMATS
    }
    assert (timings["p50"] > 0).all()

# SPDX-License-Identifier: Apache-2.0
"""The tables of the accuracy benchmark, against figures worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.accuracy_report import report

RUNS = [
    # column, abnormal class, seed, AUROC of each epoch, last value by another score
    ("default", "0", 0, [0.5, 0.9, 0.8], 0.7),
    ("default", "1", 0, [0.4, 0.5, 0.6], 0.5),
    ("default", "0", 1, [0.5, 0.6, 0.9], 0.8),
    ("default", "1", 1, [0.7, 0.8, 0.7], 0.6),
    ("default", "0", 2, [0.1, 0.1, 0.1], 0.1),  # Its other class has not run.
    ("official", "0", 0, [0.6, 0.5, 0.7], None),
    ("official", "1", 0, [0.3, 0.4, 0.5], None),
    ("default-bce", "1", 0, [0.5, 0.7], None),
    ("default-bce", "1", 1, [0.5, 0.8], None),
    ("egbad", "0", 0, [0.9], None),
    ("egbad", "1", 0, [0.4], None),
    ("anogan", "1", 0, [0.3], None),  # Its other class has not run, so it has not won there.
]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, list[str]]:
    """Cells of the report's tables by the first of each row; of equal ones the last."""
    folder = tmp_path / "digits-small"
    folder.mkdir()
    for column, name, seed, aurocs, other in RUNS:
        scores = {"latent_relative": aurocs} | ({} if other is None else {"latent_l1": [other]})
        record = {"column": column, "abnormal_class": name, "seed": seed, "auroc": aurocs, "scores": scores}
        (folder / f"{column}-{name}-{seed}.json").write_text(json.dumps(record))
    text = report(folder, ("official", "paper", "default", "default-bce"), ("egbad", "anogan"))
    assert (tmp_path / "digits-small.md").read_text() == text + "\n"
    assert (tmp_path / "digits-small.svg").stat().st_size > 1000
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line)
    return {first: rest for first, *rest in cells}


def test_means_take_the_last_epoch_of_complete_seeds(rows: dict[str, list[str]]) -> None:
    """Seeds 0 and 1: (0.8 + 0.6) / 2 and (0.9 + 0.7) / 2; a column without runs is left out."""
    assert rows["**mean, last epoch**"] == ["0.600", "0.750 ± 0.071"]


def test_best_epoch_and_swing_stand_apart(rows: dict[str, list[str]]) -> None:
    """Best: (0.9 + 0.6) / 2 and (0.9 + 0.8) / 2. Changes: (0.25 + 0.1) / 2 and (0.2 + 0.1) / 2."""
    assert rows["mean, best epoch on the test set"] == ["0.600", "0.800 ± 0.071"]
    assert rows["mean change between the last 5 epochs"] == ["0.125", "0.163 ± 0.018"]


def test_scores_of_the_same_trainings(rows: dict[str, list[str]]) -> None:
    """(0.7 + 0.5) / 2 and (0.8 + 0.6) / 2 by the score that the public code does not give."""
    assert rows["latent_l1"] == ["", "0.650 ± 0.071"]


def test_levers_are_compared_on_their_own_runs(rows: dict[str, list[str]]) -> None:
    """(0.7 + 0.8) / 2 against (0.6 + 0.7) / 2, on class 1 alone."""
    assert rows["default-bce"] == ["0.750", "0.650", "+0.100", "1", "0, 1"]


def test_detectors_are_compared_with_the_default(rows: dict[str, list[str]]) -> None:
    """Class 0: 0.6 against 0.9; class 1: 0.65 against 0.4."""
    assert rows["**mean**"] == ["0.750 ± 0.071", "0.650", ""]
    assert rows["against default"] == ["", "-0.100", ""]
    assert rows["classes where it is the best"] == ["1", "1", "0"]

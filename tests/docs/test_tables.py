# SPDX-License-Identifier: Apache-2.0
"""The figures of README and of the documentation are those of the result files."""

import re
from pathlib import Path

import pytest
from pandas import DataFrame

from benchmarks import tables

from .pages import PAGES, name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_are_current(page: Path) -> None:
    """``python -m benchmarks.tables`` would change nothing."""
    text = page.read_text()
    assert tables.fill(text) == text


@pytest.mark.parametrize("page", [page for page in PAGES if tables.BLOCK.search(page.read_text())], ids=name)
def test_no_figure_is_typed(page: Path) -> None:
    """Outside of tables and code, no page with results holds a fraction with three digits or more."""
    text = re.sub(r"```.*?```|`[^`]*`", "", tables.BLOCK.sub("", page.read_text()), flags=re.DOTALL)
    assert re.findall(r"\b0\.\d{3,}", text) == []


def test_every_result_is_shown() -> None:
    """No file of results is left over: a table reads it, and a page holds each table."""
    pages = "\n".join(page.read_text() for page in PAGES)
    assert {name for _, name, *_ in tables.BLOCK.findall(pages)} == set(tables.TABLES)
    read = Path(tables.__file__).read_text() + pages
    for file in tables.RESULTS.iterdir():
        assert re.search(rf"\b{file.stem.removesuffix('_timings')}\b", read), file.name


def test_figures() -> None:
    """The mean over categories and seeds, the deviation over seeds of the means, worked out by hand."""
    rows = [(model, category, seed, base + 0.1 * int(category) + 0.02 * seed)
            for model, base in (("A", 0.5), ("B", 0.3)) for category in "12" for seed in (0, 1)]  # fmt: skip
    runs = DataFrame(rows, columns=["model", "category", "seed", "image_AUROC"])
    first, second = runs[runs["model"] == "A"], runs[runs["model"] == "B"]
    assert tables.figure(first) == "0.660 ± 0.014"
    assert tables.figure(first[first["seed"] == 0]) == "0.650"
    assert tables.figure(first, "pixel_AUROC") == ""
    assert tables.difference(second, first) == "-0.200"
    assert tables.difference(first, first) == ""


def test_seeds_with_other_categories_are_refused() -> None:
    """Their means could not be compared."""
    runs = DataFrame({"category": ["1", "2", "1"], "seed": [0, 0, 1], "image_AUROC": [0.5, 0.6, 0.7]})
    with pytest.raises(ValueError, match="The seeds have different categories"):
        tables.figure(runs)


def test_unknown_table() -> None:
    """A misspelt name is refused with those that exist."""
    with pytest.raises(ValueError, match="There is no table 'digit'; choose from ablation, "):
        tables.fill("<!-- table: digit -->\n<!-- /table -->")

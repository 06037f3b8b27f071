# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, whatever models and datasets are called, and however many seeds there are."""

import re
from pathlib import Path

import pytest

from ganomaly_plugin.compare import report
from ganomaly_plugin.compare.comparison import overview
from ganomaly_plugin.compare.grid import Grid
from ganomaly_plugin.compare.record import Result
from ganomaly_plugin.compare.summary import Summary
from ganomaly_plugin.compare.timing import TimedExport

from .conftest import separated, summarise

NAME = r"a_b | *50%* & #1 {x} ~ ^ $y$ \z <i> `c` [d](e) _f_"


@pytest.fixture
def named(tmp_path: Path) -> Summary:
    """Two models with a name that means something in every language."""
    scores = {(model, 8, seed): separated([1.0])[0] for model in ("A", NAME) for seed in (0, 1)}
    summary = summarise(tmp_path, scores)
    failed = [Result(summary.results[0].run, tmp_path, {}, "ValueError: a | b\n*c*")]
    config = summary.grid.config
    return Summary(Grid(summary.grid.runs, NAME, config), [*summary.results[1:], *failed])


def test_markdown(named: Summary) -> None:
    """Each table has as many cells in each row as in its head, and no name is read as anything else."""
    timings = [TimedExport(NAME, "digits", "torch", 0.0, None, None, None, "Error: a | b\nc")]
    text = report._markdown(named, timings)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    escaped = r"a_b \| \*50%\* \& \#1 \{x\} \~ ^ \$y\$ \\z \<i\> \`c\` \[d\](e) \_f\_"
    assert text.count(escaped) == text.count("a_b") > 3
    assert r"ValueError: a \| b \*c\*" in text


def test_latex(named: Summary) -> None:
    """Every character that LaTeX reads as a command is escaped."""
    text = report._latex(named)
    (line,) = re.findall(r".*50.*", text)
    name = line.split(r" & ")[0] if r"\&" not in line else line[: line.rindex(" & ")]
    for escaped in (r"a\_b", r"50\%", r"\&", r"\#1", r"\{x\}", r"\textasciitilde", r"\textasciicircum", r"\$y\$"):
        assert escaped in name
    assert r"\textbackslash" in name
    assert not re.findall(r"(?<!\\)[_%#&$]", name)


def test_pictures_take_any_name(named: Summary) -> None:
    """Dollars begin no formula in a legend."""
    for model in ("$y$", r"$\frac$", "$"):
        assert report.figures.curves({model: (separated([1.0])[0], [0] * 50 + [1] * 50)}, {model: "#000000"})


@pytest.mark.parametrize(("n_seeds", "said"), [(1, "n/a: 1 seed |"), (2, "n/a: 2 seeds |"), (4, "n/a: 4 seeds |")])
def test_few_seeds(n_seeds: int, said: str, tmp_path: Path) -> None:
    """No interval over seeds, no deviation of one seed, nothing bold and no NaN."""
    scores = {
        (model, 8, seed): each
        for seed in range(n_seeds)
        for model, each in zip("AB", separated([3.0, 0.5], seed), strict=True)
    }
    summary = summarise(tmp_path, scores)
    texts = [report._markdown(summary, []), report._latex(summary), report._csv(summary)]
    assert said in texts[0]
    assert ("±" in re.sub(r"^Mean over.*", "", texts[0], flags=re.MULTILINE)) == (n_seeds > 1)
    assert not any("nan" in text.lower() or "**" in text or "textbf" in text for text in texts)


def test_five_seeds(tmp_path: Path) -> None:
    """The better model is bold, with both intervals and a p-value."""
    scores = {
        (model, 8, seed): each
        for seed in range(5)
        for model, each in zip("AB", separated([3.0, 0.5], seed), strict=True)
    }
    summary = summarise(tmp_path, scores)
    text = report._markdown(summary, [])
    assert re.search(r"^\| A \| \*\*0\.9\d\d ± 0\.0\d\d\*\* \|", text, flags=re.MULTILINE)
    line = re.findall(r"^\| B \|.*", text, flags=re.MULTILINE)[1]
    assert re.fullmatch(
        r"\| B \| [\d. ±]+ \|( [\d.]+ to [\d.]+ \|){2} -[\d.]+ \|( -[\d.]+ to -[\d.]+ \|){2} < 0\.001 \|", line
    )
    assert "n/a" not in text
    assert report._latex(summary).count(r"\textbf") == 1


def test_tuning_is_said(tmp_path: Path) -> None:
    """Which models' settings were chosen on test images, and where no category is free of it."""
    scores = {(model, category, 0): separated([1.0])[0] for model in "AB" for category in (1, 8)}
    some = summarise(tmp_path / "some", scores, A={"tuned_on": {"digits": [8]}})
    text = report._markdown(some, [])
    assert "Settings were chosen on test images: A (digits 8). The configuration names no settings chosen on" in text
    assert "chosen on test images for B." in text
    assert "| model | image_AUROC | image_AUROC without 8 |" in text
    assert "digits without 8" in report._latex(some)
    assert [column.header for column in overview(some).columns] == ["image AUROC", "digits", "digits without 8"]
    every = summarise(tmp_path / "every", scores, A={"tuned_on": {"digits": [8, 1]}})
    assert "No category of digits is free of it, so the figures favour the tuned models." in report._markdown(every, [])
    assert "without" not in report._latex(every)

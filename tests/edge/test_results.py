# SPDX-License-Identifier: Apache-2.0
"""The file of results: names of any kind, continued runs, and two runs at once."""

import csv
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pandas
import pytest

from ganomaly_plugin.edge.results import Result, Results, written_name

ODD_NAMES = ["a,b.png", 'a"b.png', "a\rb.png", "a\nb.png", "\r\n.png", "ü.png", " a .png", "'a.png", '"\n"'] + [
    f"{first}a.png" for first in "=+-@\t\r"
]


def open_results(path: Path, resume: bool = False, model: str = "ab12", threshold: float | None = 0.5) -> Results:
    """Open a file of results of one model and threshold."""
    return Results(path, resume, model, threshold)


def write(results: Results, names: list[str]) -> None:
    """Write a score for each name, and close the file."""
    with closing(results):
        for name in names:
            results.write_score(name, 0.25, False)


@pytest.fixture(params=[".csv", ".jsonl"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file of results of each kind."""
    return tmp_path / f"results{request.param}"


def test_readers_read_back_what_was_written(tmp_path: Path) -> None:
    """Python's, and that of pandas: the same names, numbers, and cells that no spreadsheet runs."""
    path = tmp_path / "results.csv"
    write(open_results(path), ODD_NAMES)
    with path.open(newline="", encoding="utf-8") as file:
        read = [row["path"] for row in csv.DictReader(file)]
    assert read == [written_name(name) for name in ODD_NAMES]
    assert [os.path.normpath(name) for name in read] == [os.path.normpath(name) for name in ODD_NAMES]
    assert not any(name.startswith(tuple("=+-@\t\r")) for name in read)
    table = pandas.read_csv(path)
    assert list(table["path"]) == read
    assert set(table["score"]) == {0.25}
    assert set(table["threshold"]) == {0.5}


def test_any_name_is_found_again(path: Path) -> None:
    """So that a continued run scores nothing twice."""
    write(open_results(path), ODD_NAMES)
    with closing(open_results(path, resume=True)) as results:
        assert results.names == {written_name(name) for name in ODD_NAMES}
        assert results.count == len(ODD_NAMES)


def test_killed_at_any_byte(path: Path) -> None:
    """Whatever part of the last line is there, it is written again."""
    names = ["first.png", 'second "\n".png']
    write(open_results(path), names)
    whole = path.read_bytes()
    write(open_results(path.with_stem("first")), names[:1])
    start = path.with_stem("first").stat().st_size
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        write(open_results(path, resume=True), names[1:])
        assert path.read_bytes() == whole, whole[:end]


def test_reasons_are_kept(path: Path) -> None:
    """An image without a score has a row, which a continued run counts."""
    with closing(open_results(path)) as results:
        result = results.write_error("a.png", OSError("it is\nbroken"))
        assert result == Result("a.png", None, "error", 0.5, "ab12", "it is broken")
        results.write_score("b.png", 0.9, True)
    with closing(open_results(path, resume=True)) as results:
        assert results.names == {"a.png", "b.png"}
        assert (results.count, results.anomalous, results.errors) == (1, 1, 1)


@pytest.mark.parametrize("other", [{"model": "cd34"}, {"threshold": 0.7}, {"threshold": None}])
def test_decisions_of_two_kinds_are_never_mixed(path: Path, other: dict[str, object]) -> None:
    """Another model, or another threshold."""
    write(open_results(path), ["a.png"])
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=r"holds results of model ab12 with threshold 0\.5, but this is .*--output"):
        open_results(path, resume=True, **other)  # type: ignore[arg-type]
    assert path.read_bytes() == whole


def test_earlier_results_are_never_overwritten(path: Path) -> None:
    """Only an empty file may be there."""
    path.touch()
    write(open_results(path), ["a.png"])
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="holds results already: add --resume"):
        open_results(path)
    assert path.read_bytes() == whole


def test_one_process_at_a_time(path: Path) -> None:
    """The second one is refused, and the first goes on."""
    with closing(open_results(path)) as results:
        results.write_score("a.png", 0.1, False)
        with pytest.raises(BlockingIOError, match="Another process writes to"):
            open_results(path, resume=True)
        results.write_score("b.png", 0.1, False)
    with closing(open_results(path, resume=True)) as results:
        assert results.names == {"a.png", "b.png"}


@pytest.mark.parametrize("text", ["path,score,label\na.png,1,normal\n", "no results\n", "[1]\n", "1\n", "{}\n"])
def test_other_files_are_not_continued(path: Path, text: str) -> None:
    """They stay as they are."""
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no results that could be resumed"):
        open_results(path, resume=True)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text", ["my notes", "path,score,label", '"', "{", '{"path": "a", "x', '{"path": "a"}', "\0a", '"path","sc0"']
)
def test_other_files_without_a_last_line_break(path: Path, text: str) -> None:
    """Nothing is cut off that was not the start of a line of results."""
    path.write_text(text)
    ours = ['"path","score"' if path.suffix == ".csv" else '{"path": "a'][0]
    if ours.startswith(text):
        open_results(path, resume=True).close()
        return
    with pytest.raises(ValueError, match="holds no results that could be resumed: its line 1 "):
        open_results(path, resume=True)
    assert path.read_text() == text


def test_what_a_power_cut_leaves(path: Path) -> None:
    """Zeros behind the last row."""
    write(open_results(path), ["a.png"])
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100))
    open_results(path, resume=True).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("row", [0, 3, 9])
@pytest.mark.parametrize("place", range(12))
def test_damage_amid_the_rows(path: Path, row: int, place: int) -> None:
    """A missing quotation mark costs no row: the file stays as it is, and the message names the line."""
    write(open_results(path), [f"{index}.png" for index in range(10)])
    lines = path.read_text().splitlines(keepends=True)
    number = row + (path.suffix == ".csv")
    parts = lines[number].split('"')
    parts[place] += parts.pop(place + 1)
    lines[number] = '"'.join(parts)
    damaged = "".join(lines)
    path.write_text(damaged)
    with pytest.raises(ValueError, match=f"its line {number + 1} is no row"):
        open_results(path, resume=True)
    assert path.read_text() == damaged


def test_last_row_of_an_image_counts(path: Path) -> None:
    """Errors are tried again: a further row replaces that of before, and the same error writes none."""
    with closing(open_results(path)) as results:
        for name in ("a.png", "b.png"):
            results.write_error(name, OSError("broken"))
    for _ in range(2):
        with closing(open_results(path, resume=True)) as results:
            results.write_error("a.png", OSError("broken"))
            if "b.png" not in results.scored:
                results.write_score("b.png", 0.9, True)
            assert (results.count, results.anomalous, results.errors) == (1, 1, 1)
            assert results.scored == {"b.png"}
    assert path.read_text().count("b.png") == 2
    assert path.read_text().count("a.png") == 1

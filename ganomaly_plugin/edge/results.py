# SPDX-License-Identifier: Apache-2.0
"""The file of results: written line by line, read back by CSV readers and spreadsheets, continued after a crash."""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator, KeysView
from pathlib import Path
from typing import Any, NamedTuple, TextIO

NORMAL, ANOMALOUS, ERROR = "normal", "anomalous", "error"
"""Labels. An image with an error has no score but a reason."""

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
"""How results are written: names of files may hold any bytes."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes spreadsheets run a cell."""


_LABELS = {NORMAL, ANOMALOUS, ERROR}

# How a value is written, and how the start of one is.
_CSV_NAME = re.compile(r'"(?:[^"]|"")*"'), re.compile(r'(?:"(?:[^"]|"")*)?')
_CSV_REASON = re.compile(r'"(?:[^"\n]|"")*"'), re.compile(r'(?:"(?:[^"\n]|"")*)?')
_CSV_VALUE = re.compile(r'"[^",\n]*"'), re.compile(r'(?:"[^",\n]*)?')
_JSON_VALUE = (
    re.compile(r'"(?:[^"\\\n]|\\.)*"|[\w.+-]+(?=[,}])'),
    re.compile(r'(?:"(?:[^"\\\n]|\\.)*\\?)?|[\w.+-]+'),
)


class Result(NamedTuple):
    """One line of the results. The fields are the columns of a CSV file and the keys of a JSON line."""

    path: str
    score: float | None
    label: str
    threshold: float | None
    """Score above which images are anomalous; ``None`` where the model does not say."""
    model: str
    """Hash of the model's files."""
    error: str = ""
    """Why there is no score."""


class Results:
    """The results, written one line at a time and at once, so that a killed run loses nothing.

    An image that is scored again gets a further row, and its last one counts. The file is locked, so that two processes
    never write the same one. Paths that start like a formula are written with
    ``./`` before them.

    Args:
        path: A ``.csv`` or ``.jsonl`` file; ``None`` is CSV on standard output.
        resume: Whether to keep what the file holds and go on behind it.
        model: Hash of the model's files.
        threshold: Score above which images are anomalous, or ``None``.

    Raises:
        ValueError: If the file's name has another ending, or the file holds results that may not be continued: others
            without ``resume``, those of another model or threshold, or something else.
        BlockingIOError: If another process writes it.
    """

    def __init__(self, path: Path | None, resume: bool, model: str, threshold: float | None) -> None:
        if path is not None and path.suffix not in {".csv", ".jsonl"}:
            msg = f"--output is '{path}', but must end in .csv or .jsonl."
            raise ValueError(msg)
        if resume and path is None:
            msg = "--resume needs the file of the earlier results: give --output."
            raise ValueError(msg)
        self._model, self._threshold = model, threshold
        self._labels: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self.count = 0
        """Number of scored images, those of earlier runs among them."""
        self.anomalous = 0
        """How many of them are anomalous."""
        self.errors = 0
        """Number of images that have no score."""
        if path is None:
            self._file: TextIO = sys.stdout
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", **TEXT)
            try:
                _lock(self._file, path)
                self._continue(path, resume)
            except BaseException:
                self._file.close()
                raise
        self._csv = None
        if path is None or path.suffix == ".csv":
            self._csv = csv.DictWriter(self._file, Result._fields, lineterminator="\n", quoting=csv.QUOTE_ALL)
            if path is None or not path.stat().st_size:
                self._csv.writeheader()
                self._file.flush()

    def _continue(self, path: Path, resume: bool) -> None:
        """Read what the file holds, and cut off the half line that a killed run may have left."""
        if not resume:
            if path.stat().st_size:
                msg = f"'{path}' holds results already: add --resume to continue them, or name another file."
                raise ValueError(msg)
            return
        self._file.seek(0)
        text = self._file.read()
        complete = _complete_lines(text, quoted=path.suffix == ".csv")
        earlier: list[Result] = []
        try:
            for result in _parse(complete, path):
                earlier.append(result)
            if not _is_half_line(text[len(complete) :].rstrip("\0"), path, first=not complete):
                msg = "behind the last row is something else"
                raise ValueError(msg)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            line = _line_of(len(earlier), complete, path)
            msg = (
                f"'{path}' holds no results that could be resumed: its line {line} is no row of them. Mend it, or name "
                "another file with --output."
            )
            raise ValueError(msg) from error
        for result in earlier:
            self._check_origin(result, path)
            self._add(result)
        self._file.truncate(len(complete.encode(TEXT["encoding"], TEXT["errors"])))
        self._file.seek(0, os.SEEK_END)

    def _check_origin(self, result: Result, path: Path) -> None:
        if (result.model, result.threshold) != (self._model, self._threshold):
            msg = (
                f"'{path}' holds results of model {result.model} with threshold {result.threshold}, but this is model "
                f"{self._model} with threshold {self._threshold}: name another file with --output."
            )
            raise ValueError(msg)

    @property
    def names(self) -> KeysView[str]:
        """Paths of the images that have a result, an error included."""
        return self._labels.keys()

    @property
    def scored(self) -> set[str]:
        """Paths of the images that have a score."""
        return self.names - self._failures.keys()

    def write_score(self, path: str, score: float, is_anomalous: bool) -> Result:
        """Add the result of an image that was scored."""
        return self._write(path, score, ANOMALOUS if is_anomalous else NORMAL)

    def write_error(self, path: str, error: Exception) -> Result:
        """Add an image that has no score, and why, unless its last row says the same."""
        return self._write(path, None, ERROR, " ".join(str(error).split()))

    def _write(self, path: str, score: float | None, label: str, error: str = "") -> Result:
        result = Result(written_name(path), score, label, self._threshold, self._model, error)
        if label == ERROR and self._failures.get(result.path) == error:
            return result
        if self._csv is not None:
            self._csv.writerow(result._asdict())
        else:
            self._file.write(json.dumps(result._asdict()) + "\n")
        self._file.flush()
        self._add(result)
        return result

    def _add(self, result: Result) -> None:
        """Count a result in the place of the image's earlier one."""
        if (earlier := self._labels.get(result.path)) is not None:
            self._count(earlier, -1)
        self._count(result.label, 1)
        self._labels[result.path] = result.label
        self._failures.pop(result.path, None)
        if result.label == ERROR:
            self._failures[result.path] = result.error

    def _count(self, label: str, number: int) -> None:
        self.errors += number * (label == ERROR)
        self.count += number * (label != ERROR)
        self.anomalous += number * (label == ANOMALOUS)

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._file is not sys.stdout:
            self._file.close()


def written_name(path: str) -> str:
    """Return a path as the results give it, which no spreadsheet takes for a formula."""
    return f"{os.curdir}{os.sep}{path}" if path.startswith(_FORMULA) else path


def _complete_lines(text: str, quoted: bool) -> str:
    """Return a file's text without the line that has no end; in quotes, a line break is part of a name."""
    end = position = quotes = 0
    while (found := text.find("\n", position)) >= 0:
        quotes += text.count('"', position, found)
        position = found + 1
        if not quoted or quotes % 2 == 0:
            end = position
    return text[:end]


def _is_half_line(text: str, path: Path, first: bool) -> bool:
    """Say whether a killed run can have left this behind the complete lines: the start of a row, or of the header."""
    if path.suffix == ".csv":
        if first:
            return ",".join(f'"{name}"' for name in Result._fields).startswith(text)
        literals = ["", *[","] * (len(Result._fields) - 1), ""]
        values = [_CSV_NAME, *[_CSV_VALUE] * (len(Result._fields) - 2), _CSV_REASON]
    else:
        literals = [f', "{name}": ' for name in Result._fields] + ["}"]
        literals[0] = "{" + literals[0].removeprefix(", ")
        values = [_JSON_VALUE] * len(Result._fields)
    for number, literal in enumerate(literals):
        if not text.startswith(literal):
            return literal.startswith(text)
        text = text[len(literal) :]
        if number == len(values):
            break
        value, half_value = values[number]
        if half_value.fullmatch(text):
            return True
        if (found := value.match(text)) is None:
            return False
        text = text[found.end() :]
    return not text


def _line_of(rows: int, complete: str, path: Path) -> int:
    """Return in which line the row begins that follows so many good ones, of 1 and more."""
    if path.suffix == ".jsonl":
        return rows + 1
    reader = csv.reader(io.StringIO(complete, newline=""), strict=True)
    try:
        for _ in range(rows + 1):
            next(reader)
    except (StopIteration, csv.Error):
        return 1
    return reader.line_num + 1


def _parse(text: str, path: Path) -> Iterator[Result]:
    lines = io.StringIO(text, newline="")
    if path.suffix == ".jsonl":
        for line in lines:
            result = Result(**json.loads(line))
            if result.label not in _LABELS or not isinstance(result.path, str):
                raise ValueError(line)
            yield result
        return
    reader = csv.DictReader(lines, strict=True)
    if text and tuple(reader.fieldnames or ()) != Result._fields:
        raise KeyError(reader.fieldnames)
    for row in reader:
        if len(row) != len(Result._fields) or None in row.values() or row["label"] not in _LABELS:
            raise ValueError(row)
        score, threshold = (float(value) if value else None for value in (row["score"], row["threshold"]))
        yield Result(row["path"], score, row["label"], threshold, row["model"], row["error"])


def _lock(file: TextIO, path: Path) -> None:
    """Keep other processes from writing a file until it is closed, or this process ends in whatever way."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        msg = f"Another process writes to '{path}': wait for its end, or name another file with --output."
        raise BlockingIOError(msg) from error

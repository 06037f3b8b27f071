# SPDX-License-Identifier: Apache-2.0
"""A folder that a camera writes into, followed by a process of its own; and drift."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp

from ganomaly_plugin.edge import Detector, program_starter
from ganomaly_plugin.edge.drift import LEVEL, DriftMonitor, kolmogorov_smirnov
from ganomaly_plugin.edge.folder_follower import FolderFollower
from ganomaly_plugin.edge.line_summary import LineSummary
from ganomaly_plugin.edge.results import Result

from .conftest import Trained


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.02)


class Line:
    """A folder, and a process that watches it."""

    def __init__(self, model: Path, root: Path, *options: str) -> None:
        self.folder, self.output, self.log = root / "camera", root / "results.csv", root / "log.txt"
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "ganomaly_plugin.edge.command", "watch", model, self.folder]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--output", str(self.output), *options], stderr=log, stdout=log
            )
        wait_until(lambda: self.output.exists() and self.output.stat().st_size > 0)

    def rows(self) -> list[dict[str, str]]:
        """The results so far."""
        with self.output.open(newline="") as file:
            return list(csv.DictReader(file))

    def names(self) -> list[str]:
        """Names of the files that have a result, in its order."""
        return [Path(row["path"]).name for row in self.rows()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Stop the process in good order, and return what it said."""
        self.process.send_signal(number)
        assert self.process.wait(60) == 0
        return self.log.read_text()


@pytest.fixture
def start(trained: Trained, tmp_path: Path) -> Iterator[Callable[..., Line]]:
    """Starts the watch of a folder, and ends what a failed test leaves running."""
    lines = []

    def run(*options: str, model: Path = trained.xml) -> Line:
        lines.append(Line(model, tmp_path, *options))
        return lines[-1]

    yield run
    for line in lines:
        line.process.kill()
        line.process.wait()


def test_files_of_all_kinds_of_writers(trained: Trained, tmp_path: Path, start: Callable[..., Line]) -> None:
    """Written at once, in pieces with pauses, moved in, in a new folder; what was there before is left out."""
    whole = Path(trained.paths[0]).read_bytes()
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "old.png").write_bytes(whole)
    line = start()
    (line.folder / ".a.png").write_bytes(whole)  # Some writers rename such files when they are complete.
    (line.folder / "._b.png").write_bytes(b"resource fork")
    (line.folder / ".ipynb_checkpoints").mkdir()
    (line.folder / ".ipynb_checkpoints" / "c.png").write_bytes(whole)
    time.sleep(0.5)
    (line.folder / ".a.png").rename(line.folder / "a.png")
    wait_until(lambda: line.names() == ["a.png"])
    with (line.folder / "slow.png").open("wb") as file:
        for byte in (whole[:20], whole[20:60], whole[60:]):
            time.sleep(0.7)  # Longer than a file takes to settle.
            file.write(byte)
            file.flush()
    wait_until(lambda: line.names() == ["a.png", "slow.png"])
    (line.folder / "today").mkdir()
    (tmp_path / "moved.png").write_bytes(whole)
    (tmp_path / "moved.png").rename(line.folder / "today" / "moved.png")
    wait_until(lambda: line.names() == ["a.png", "slow.png", "moved.png"])
    (line.folder / "notes.txt").write_text("no image")
    (line.folder / "broken.png").write_bytes(whole[:60])
    wait_until(lambda: len(line.names()) == 4)
    said = line.stop()
    assert [row["label"] == "error" for row in line.rows()] == [False, False, False, True]
    assert "1 images that are in" in said and "left out" in said
    expected = Detector(trained.xml).predict(trained.paths[0]).score
    assert float(line.rows()[0]["score"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed(trained: Trained, tmp_path: Path, start: Callable[..., Line], number: int) -> None:
    """No picture is lost or scored twice, those that came meanwhile included."""
    line = start()
    for index in range(60):
        (line.folder / f"{index:02}.png").write_bytes(Path(trained.paths[index]).read_bytes())
        if index == 30:
            line.process.send_signal(number)
    assert line.process.wait(60) == (-9 if number == signal.SIGKILL else 0)
    resumed = start("--resume")
    wait_until(lambda: len(resumed.names()) >= 60)
    time.sleep(0.3)
    resumed.stop()
    assert sorted(resumed.names()) == [f"{index:02}.png" for index in range(60)]


def test_name_that_is_used_again(trained: Trained, tmp_path: Path, start: Callable[..., Line]) -> None:
    """Each part has its row: deleted and written again, overwritten in place, moved away, also after a resumption."""
    first, *others = (Path(path).read_bytes() for path in trained.paths[:6])
    line = start()
    file = line.folder / "part.png"
    file.write_bytes(first)
    wait_until(lambda: len(line.rows()) == 1)
    file.unlink()
    file.write_bytes(others[0])
    wait_until(lambda: len(line.rows()) == 2)
    file.write_bytes(others[1])
    wait_until(lambda: len(line.rows()) == 3)
    file.rename(tmp_path / "kept.png")
    file.write_bytes(others[2])
    wait_until(lambda: len(line.rows()) == 4)
    file.write_bytes(first[:60])  # Unreadable, and written again.
    wait_until(lambda: len(line.rows()) == 5)
    file.write_bytes(others[3])
    wait_until(lambda: len(line.rows()) == 6)
    line.stop()
    earlier = line.log.read_text().count("parts/s")
    resumed = start("--resume", "--summary-seconds", "0.5")
    wait_until(lambda: line.log.read_text().count("parts/s") >= earlier + 3)
    file.unlink()
    file.write_bytes(others[4])
    wait_until(lambda: len(resumed.rows()) == 7)
    resumed.stop()
    detector = Detector(trained.xml)
    expected = [detector.predict(content).score for content in (first, *others)]
    scores = [float(row["score"]) for row in resumed.rows() if row["score"]]
    assert scores == pytest.approx(expected, abs=1e-6)


def test_file_that_changes_while_it_waits_to_be_scored(trained: Trained, tmp_path: Path) -> None:
    """It gets no row until it has settled again, nor does one whose writer pauses for less than ``--settle``."""
    folder = tmp_path / "camera"
    folder.mkdir()
    follower = FolderFollower(folder, set(), lambda: False, settled=0.05)
    files = iter(follower)
    file = folder / "a.png"
    whole = Path(trained.paths[0]).read_bytes()
    file.write_bytes(bytes(len(whole)))  # As writers do that ask for their space first.
    assert next(files) == file
    file.write_bytes(whole)
    assert not follower.finish(file, readable=True)
    assert next(files) == file
    assert follower.finish(file, readable=True)


def test_settle(trained: Trained, start: Callable[..., Line]) -> None:
    """A writer may pause for less than that in a file of its final size."""
    whole = Path(trained.paths[0]).read_bytes()
    line = start("--settle", "2")
    with (line.folder / "a.png").open("wb") as file:
        file.write(whole[:50] + bytes(len(whole) - 50))
        file.flush()
        time.sleep(1)
        assert line.rows() == []
        file.seek(0)
        file.write(whole)
    wait_until(lambda: len(line.rows()) == 1)
    line.stop()
    assert line.rows()[0]["label"] != "error"


def test_both_signals_at_once(start: Callable[..., Line]) -> None:
    """As a terminal and a supervisor may send them."""
    for _ in range(4):
        line = start()
        line.process.send_signal(signal.SIGINT)
        line.process.send_signal(signal.SIGTERM)
        assert line.process.wait(30) == 0
        line.output.unlink()


def test_stop_leaves_the_backlog(trained: Trained, tmp_path: Path) -> None:
    """Of the files that are complete, no further one is begun."""
    stopped = False
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(Path(trained.paths[index]).read_bytes())
    files = iter(FolderFollower(tmp_path, set(), lambda: stopped, settled=0))
    next(files)
    stopped = True
    assert list(files) == []


def test_program_on_anomaly(trained: Trained, tmp_path: Path, start: Callable[..., Line]) -> None:
    """It gets the result, and however long it takes, the next predictions come; Ctrl-C waits for it."""
    program = tmp_path / "gate.py"
    program.write_text(
        "import pathlib, sys, time\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.02)\n"
        f"open({str(tmp_path / 'rejected.jsonl')!r}, 'a').write(sys.argv[-1] + '\\n')\n"
    )
    line = start("--threshold", "0", "--on-anomaly", f"'{sys.executable}' '{program}'")
    for index in range(3):
        (line.folder / f"{index}.png").write_bytes(Path(trained.paths[index]).read_bytes())
    wait_until(lambda: len(line.names()) == 3)
    assert not (tmp_path / "rejected.jsonl").exists()
    line.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    assert line.process.wait(60) == 0
    rejected = [json.loads(text) for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert sorted(result["path"] for result in rejected) == [str(line.folder / f"{index}.png") for index in range(3)]
    assert {result["label"] for result in rejected} == {"anomalous"}


def test_program_that_is_too_slow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and each summary says how many parts wait for it."""
    monkeypatch.setattr(program_starter, "WARNED_AT", 3)
    go = tmp_path / "go"
    program = tmp_path / "gate.sh"
    program.write_text(f"while [ ! -e '{go}' ]; do sleep 0.05; done\n")
    starter = program_starter.ProgramStarter(f"sh '{program}'")
    result = Result("a.png", 0.9, "anomalous", 0.5, "ab12")
    for _ in range(program_starter.AT_A_TIME + 5):
        starter.start(result)
    wait_until(lambda: starter.waiting == 5)
    LineSummary(60, lambda: starter.waiting).close()
    go.touch()
    starter.close()
    said = capfd.readouterr().err
    assert said.count("the program of --on-anomaly is too slow: ") == 1
    assert ", 5 wait for their program\n" in said
    assert starter.waiting == 0


def test_summary_and_drift(trained: Trained, tmp_path: Path, start: Callable[..., Line]) -> None:
    """A line every second, also when nothing comes; and a warning when the parts are others than those of before."""
    good = [path for path, bad in zip(trained.paths, trained.values("gt_label"), strict=True) if not bad]
    model = tmp_path / "calibrated.xml"
    Detector(trained.xml).calibrate(good, [], model, false_alarms=0.1)
    line = start("--summary-seconds", "1", "--drift-window", "20", model=model)
    for index in range(20):
        (line.folder / f"{index:02}.png").write_bytes(Path(good[index]).read_bytes())
    wait_until(lambda: len(line.names()) == 20)
    assert "drift" not in line.log.read_text()
    for index in range(20):
        Image.new("L", (8, 8), 255).save(line.folder / f"white-{index:02}.png")
    wait_until(lambda: "drift: the scores of the last 20 parts differ" in line.log.read_text())
    wait_until(lambda: "0.00 parts/s\n" in line.log.read_text())
    said = line.stop()
    assert said.count("drift") == 1
    assert "latency p50 " in said and "% anomalous" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lost"], "There is no folder 'lost' to watch"),
        ([".", "--on-anomaly", "no-such-program --now"], "There is no program 'no-such-program --now'"),
        ([".", "--on-anomaly", ""], "There is no program '' to start"),
        ([".", "--on-anomaly", "a 'b"], "cannot be read: No closing quotation"),
        ([".", "--drift-window", "3"], "--drift-window: invalid whole number at least 20"),
        ([".", "--output", "a.txt"], "must end in .csv or .jsonl"),
    ],
)
def test_refused(trained: Trained, tmp_path: Path, arguments: list[str], message: str) -> None:
    """At once, in the last line."""
    command = [sys.executable, "-m", "ganomaly_plugin.edge.command", "watch", str(trained.xml), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]


class TestDrift:
    """The statistic, and how often it errs."""

    @pytest.mark.parametrize(("n", "m", "shift"), [(200, 500, 0.0), (200, 500, 0.2), (50, 2000, 0.5), (20, 20, 0.9)])
    def test_p_values(self, n: int, m: int, shift: float) -> None:
        """SciPy's, but for the approximation."""
        rng = np.random.default_rng(0)
        for _ in range(20):
            first, second = rng.normal(shift, 1, n), rng.normal(0, 1, m)
            expected = ks_2samp(first, second, method="asymp")
            distance, p_value = kolmogorov_smirnov(first, second)
            assert distance == pytest.approx(expected.statistic, abs=1e-12)
            assert p_value == pytest.approx(expected.pvalue, abs=0.02, rel=0.15)

    @pytest.mark.parametrize(("n", "m"), [(20, 100), (200, 99), (200, 2000)])
    def test_false_alarms(self, n: int, m: int) -> None:
        """The probability of a false one is at most the level, and not much below it."""
        rng = np.random.default_rng(1)
        trials = 20_000
        p_values = np.array([kolmogorov_smirnov(rng.random(n), rng.random(m))[1] for _ in range(trials)])
        for level in (0.05, 0.01, LEVEL):
            error = 4 * (level / trials) ** 0.5
            assert 0.4 * level - error <= (p_values < level).mean() <= level + error

    def test_ties_alarm_no_more(self) -> None:
        """Scores that are clamped to 0 and 1."""
        rng = np.random.default_rng(2)
        draw: Callable[[int], Any] = lambda n: np.clip(rng.normal(0.8, 0.3, n), 0, 1).round(1)  # noqa: E731
        assert sum(kolmogorov_smirnov(draw(200), draw(500))[1] < 0.05 for _ in range(2000)) <= 0.05 * 2000 + 40

    def test_monitor(self) -> None:
        """Silent on parts as before; warns in the window that changes, whichever way."""
        rng = np.random.default_rng(0)
        for change in (0.8, -0.8):
            monitor = DriftMonitor(rng.normal(0, 1, 500), 100)
            assert [monitor.add(score) for score in rng.normal(0, 1, 500)] == [None] * 500
            warnings = [monitor.add(score) for score in rng.normal(change, 1, 500)]
            assert [index % 100 for index, warning in enumerate(warnings) if warning] == [99] * 5

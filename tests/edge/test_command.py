# SPDX-License-Identifier: Apache-2.0
"""The command ``ganomaly-edge``: results, exit status, resuming, and one-line errors."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from PIL import Image

from ganomaly_plugin.edge import Detector, progress_line
from ganomaly_plugin.edge.command import INTERRUPTION, main
from ganomaly_plugin.edge.heat_map import map_path
from tests.processes import running

from .conftest import Trained

COMMAND = [sys.executable, "-m", "ganomaly_plugin.edge.command"]
EXIT = "sys.exit(main())"


@pytest.fixture
def images(tmp_path: Path, trained: Trained) -> Path:
    """A folder with twelve real digits."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in trained.paths[:12]:
        shutil.copy(path, folder / f"{Path(path).parent.name}-{Path(path).name}")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file of results."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_folder_to_csv(tmp_path: Path, trained: Trained, images: Path) -> None:
    """Every image in alphabetical order, with the detector's own score and decision."""
    output = tmp_path / "results.csv"
    status = main(["predict", str(trained.xml), str(images), "--output", str(output)])
    detector = Detector(trained.xml)
    files = sorted(images.iterdir())
    expected = [detector.predict(file) for file in files]
    found = rows(output)
    assert [row["path"] for row in found] == [str(file) for file in files]
    assert [float(row["score"]) for row in found] == pytest.approx([p.score for p in expected], abs=1e-5)
    assert [row["label"] == "anomalous" for row in found] == [p.is_anomalous for p in expected]
    assert status == int(any(p.is_anomalous for p in expected))


@pytest.mark.parametrize(("threshold", "status"), [("1", 0), ("0", 1)])
def test_exit_status(trained: Trained, images: Path, threshold: str, status: int) -> None:
    """No score exceeds 1, every score exceeds 0."""
    assert main(["predict", str(trained.xml), str(images), "--threshold", threshold]) == status


def test_standard_output_and_globs(trained: Trained, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --output, CSV goes to standard output and the summary to standard error."""
    main(["predict", str(trained.xml), str(images / "*.png")])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == '"path","score","label","threshold","model","error"'
    assert len(captured.out.splitlines()) == 13
    assert captured.err.startswith("12 images: ")


def test_list_on_standard_input(
    tmp_path: Path, trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One path a line, in the given order, to JSON lines."""
    files = sorted(images.iterdir(), reverse=True)[:3]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, files)) + "\n\n"))
    output = tmp_path / "results.jsonl"
    main(["predict", str(trained.xml), "-", "--output", str(output)])
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["path"] for row in found] == [str(file) for file in files]
    assert all(0 <= row["score"] <= 1 for row in found)


def test_one_bad_file_is_reported_and_skipped(
    tmp_path: Path, trained: Trained, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a row with the reason, the rest is scored, and the exit status says that something went wrong."""
    (images / "1-broken.png").write_bytes(b"\x89PNG")
    output = tmp_path / "results.csv"
    assert main(["predict", str(trained.xml), str(images), "--output", str(output), "--threshold", "1"]) == 2
    assert [row["label"] for row in rows(output)].count("normal") == 12
    (failed,) = (row for row in rows(output) if row["label"] == "error")
    assert failed["score"] == ""
    assert failed["error"].startswith(f"Cannot read the image '{failed['path']}'")
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith("ganomaly-edge: Cannot read the image '")
    assert "1-broken.png" in error[0]
    assert error[1] == "12 images: 0 anomalous, 1 not readable"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_killed_run_resumes(tmp_path: Path, trained: Trained, images: Path, suffix: str) -> None:
    """Four results and half a line are there; the finished file is that of one run, and nothing is scored twice."""
    whole, resumed = tmp_path / f"whole{suffix}", tmp_path / f"resumed{suffix}"
    status = main(["predict", str(trained.xml), str(images), "--output", str(whole)])
    lines = whole.read_text().splitlines(keepends=True)
    resumed.write_text("".join(lines[:5]) + lines[5][:10])
    files = sorted(images.iterdir())
    files[0].write_bytes(b"no image any more")  # Done already, so it is not read.
    assert main(["predict", str(trained.xml), str(images), "--output", str(resumed), "--resume"]) == status
    assert resumed.read_text() == whole.read_text()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_names_may_hold_any_bytes(tmp_path: Path, trained: Trained, images: Path, suffix: str) -> None:
    """A name in Latin-1 is written as it is, and found again by a run that resumes."""
    first = sorted(images.iterdir())[0]
    odd = Path(os.fsdecode(os.fsencode(images) + b"/pr\xfcfling.png"))
    first.rename(odd)
    output = tmp_path / f"results{suffix}"
    main(["predict", str(trained.xml), str(images), "--output", str(output)])
    whole = output.read_bytes()
    assert whole.count(b"pr\xfcfling.png" if suffix == ".csv" else rb"pr\udcfcfling.png") == 1
    main(["predict", str(trained.xml), str(images), "--output", str(output), "--resume"])
    assert output.read_bytes() == whole


def test_heat_maps(tmp_path: Path, trained: Trained, images: Path) -> None:
    """One picture an image, of the image's size."""
    maps = tmp_path / "maps"
    main(["predict", str(trained.xml), str(images), "--save-maps", str(maps)])
    pictures = sorted(maps.rglob("*.png"))
    assert [picture.stem for picture in pictures] == [file.name for file in sorted(images.iterdir())]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (8, 8)
        assert picture.mode == "RGB"


def test_no_two_images_share_a_heat_map() -> None:
    """Equal names in several folders, absolute and relative, and what cleaning of names would make equal."""
    names = ["a/1.png", "b/1.png", "../b/1.png", "../1.png", "1.png", "/1.png", "/a/1.png", "%2F/1.png", "a/../b/1.png"]
    names += ["v.avi#0", "v.avi-0", "v-0.avi", "%2E%2E/1.png", "%252E%252E/1.png", "1.jpg", "..%2F1.png", "a%2F1.png"]
    places = [map_path(name) for name in names]
    assert len(set(places)) == len(names)
    assert not any(place.is_absolute() or ".." in place.parts for place in places)


def test_names_of_any_length(
    tmp_path: Path, trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too long for a file system, with a zero, and so long that its heat map takes a shorter one: the run goes on."""
    first = min(images.iterdir())
    longest = [images / f"{'ä' * 125}{end}.png" for end in (1, 2)]
    for file in longest:
        shutil.copy(first, file)
    names = ["x" * 5000 + ".png", "a\0b.png", *map(str, longest)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names)))
    output, maps = tmp_path / "results.csv", tmp_path / "maps"
    command = ["predict", str(trained.xml), "-", "--output", str(output), "--save-maps", str(maps), "--threshold", "1"]
    assert main(command) == 2
    assert [row["label"] for row in rows(output)] == ["error", "error", "normal", "normal"]
    assert len(list(maps.rglob("*.png"))) == 2
    capsys.readouterr()
    assert main(["calibrate", str(trained.xml), names[0], "--false-alarms", "0.5"]) == 2
    assert "There is no file or folder 'xxx" in capsys.readouterr().err


def test_heat_maps_of_equal_names(
    tmp_path: Path, trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two folders beside the working directory, and one in it."""
    first = sorted(images.iterdir())[0]
    for folder in ("a", "b", "work/a"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(first, tmp_path / folder / "1.png")
    monkeypatch.chdir(tmp_path / "work")
    main(["predict", str(trained.xml), "../a", "../b", "a", str(tmp_path / "a"), "--save-maps", str(tmp_path / "maps")])
    assert len(list((tmp_path / "maps").rglob("1.png.png"))) == 4


def test_heat_map_lies_over_the_upright_image(tmp_path: Path, trained: Trained) -> None:
    """A photograph that its camera noted as rotated, and 16-bit grey, look as they are scored."""
    upright = np.zeros((48, 64), dtype=np.uint8)
    upright[:24] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise.
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(upright.astype(np.uint16) * 257).save(tmp_path / "b.png")
    Image.fromarray(upright).save(tmp_path / "c.png")
    main(["predict", str(trained.xml), str(tmp_path), "--save-maps", str(tmp_path / "maps")])
    rotated, deep, plain = (np.asarray(Image.open(file)) for file in sorted((tmp_path / "maps").rglob("*.png")))
    assert plain.shape == (48, 64, 3)
    np.testing.assert_allclose(rotated, plain, atol=1)
    np.testing.assert_allclose(deep, plain, atol=1)
    assert plain[:24].mean() > plain[24:].mean() + 50


def test_image_that_is_named_twice_counts_once(
    trained: Trained, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, and one of its files before and after it."""
    file = str(sorted(images.iterdir())[0])
    main(["predict", str(trained.xml), file, str(images), file])
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 13
    assert captured.err.startswith("12 images: ")


def log_model(path: Path) -> Path:
    """Save a model whose score of a black image is minus infinity."""
    ops = openvino.opset13
    image = ops.parameter([1, 3, -1, -1], name="image")
    score = ops.log(ops.reduce_mean(image, [1, 2, 3]))
    score.output(0).set_names({"pred_score"})
    openvino.save_model(openvino.Model([score], [image]), path)
    return path


def test_score_that_is_not_finite_is_an_error_of_its_image(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on, and a resumed run does not meet it again."""
    Image.new("L", (8, 8)).save(images / "1-black.png")
    output = tmp_path / "results.csv"
    command = ["predict", str(log_model(tmp_path / "log.xml")), str(images), "--output", str(output)]
    assert main(command) == 2
    whole = output.read_bytes()
    (failed,) = (row for row in rows(output) if row["label"] == "error")
    assert len(rows(output)) == 13
    assert failed["path"].endswith("1-black.png")
    assert failed["error"].startswith("The model scores '")
    (images / "1-black.png").unlink()
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    assert capsys.readouterr().err == "12 images: 0 anomalous, 1 not readable\n"
    assert output.read_bytes() == whole


def test_results_say_which_model_decided_how(tmp_path: Path, trained: Trained, images: Path) -> None:
    """Its own threshold, or the one that was given; a run with another one does not continue the file."""
    output = tmp_path / "results.csv"
    command = ["predict", str(trained.xml), str(images), "--output", str(output)]
    main(command)
    assert {(row["threshold"], row["model"]) for row in rows(output)} == {("0.5", Detector(trained.xml).model_hash)}
    whole = output.read_bytes()
    assert main([*command, "--resume", "--threshold", "0.4"]) == 2
    assert main([*command, "--threshold", "0.5"]) == 2
    assert output.read_bytes() == whole


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le without mark"])
def test_lists_in_the_encodings_of_windows(
    tmp_path: Path, trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """With and without a mark at the start, CRLF, a folder among the files, and one that is lost."""
    first, *others = sorted(images.iterdir())
    (images / "more").mkdir()
    first = first.rename(images / "more" / "prüfling.png")
    text = "\r\n".join([str(others[0]), str(images / "more"), "", "lost.png", str(others[1])])
    content = ("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding.removesuffix(" without mark"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))  # type: ignore[arg-type]
    output = tmp_path / "results.csv"
    assert main(["predict", str(trained.xml), "-", "--output", str(output), "--threshold", "1"]) == 2
    assert [row["path"] for row in rows(output)] == [str(others[0]), str(first), "lost.png", str(others[1])]
    assert [row["label"] for row in rows(output)] == ["normal", "normal", "error", "normal"]


def test_linked_folders(tmp_path: Path, trained: Trained, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their images count, and a link that leads back to where it lies does no harm."""
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "today").symlink_to(images, target_is_directory=True)
    (images / "back").symlink_to(folder, target_is_directory=True)
    main(["predict", str(trained.xml), str(folder)])
    assert capsys.readouterr().err.startswith("12 images: ")


def test_hidden_files_are_no_images(
    tmp_path: Path, trained: Trained, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In folders, also where a glob finds the folder; whoever names them means them."""
    hidden = images / ".ipynb_checkpoints"
    hidden.mkdir()
    first = min(images.glob("*.png"))
    for copy in (hidden / "0.png", hidden / "1.png", images / ".x.png"):
        copy.write_bytes(first.read_bytes())
    (images / "._0.png").write_bytes(b"resource fork")
    for path, count in (
        (images, 12),
        (tmp_path / "*", 12),
        (images / "*.png", 12),
        (hidden, 2),
        (images / ".x.png", 1),
    ):
        assert main(["predict", str(trained.xml), str(path), "--threshold", "1"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1 + count


def test_video_that_cannot_be_read(tmp_path: Path, trained: Trained, images: Path) -> None:
    """It is an error in its place."""
    (images / "1-broken.avi").write_bytes(b"no video")
    output = tmp_path / "results.csv"
    assert main(["predict", str(trained.xml), str(images), "--output", str(output), "--threshold", "1"]) == 2
    (failed,) = (row for row in rows(output) if row["label"] == "error")
    assert failed["error"].endswith("1-broken.avi' is no video that OpenCV can read.")
    assert [row["path"] for row in rows(output)] == sorted(row["path"] for row in rows(output))


def test_predictions_come_while_the_list_waits(trained: Trained, images: Path) -> None:
    """A line on standard input is answered before the next one comes."""
    arguments = [*COMMAND, "predict", str(trained.xml), "-"]
    with running(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        for file in sorted(images.iterdir())[:3]:
            process.stdin.write(f"{file}\n")
            process.stdin.flush()
            assert str(file) in process.stdout.readline()
        process.stdin.close()
    assert process.returncode in {0, 1}


def test_two_processes_never_write_one_file(tmp_path: Path, trained: Trained, images: Path) -> None:
    """The second one ends at once and says why."""
    output = tmp_path / "results.csv"
    arguments = [*COMMAND, "predict", str(trained.xml), "-", "--output", str(output), "--resume"]
    with running(arguments, stdin=subprocess.PIPE) as first:
        assert first.stdin is not None
        while not (output.exists() and output.stat().st_size):
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(arguments, input=str(images), capture_output=True, text=True)
        first.communicate(str(images))
    assert second.returncode == 2
    assert "Another process writes to" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert len(rows(output)) == 12


def test_pictures_above_the_limit(tmp_path: Path, trained: Trained, images: Path) -> None:
    """They are errors that say what to do; the others are scored."""
    Image.new("L", (400, 100)).save(images / "0-long.png")
    command = ["predict", str(trained.xml), str(images), "--threshold", "1", "--output"]
    assert main([*command, str(tmp_path / "a.csv"), "--max-pixels", "39999"]) == 2
    (failed,) = (row for row in rows(tmp_path / "a.csv") if row["label"] == "error")
    assert "400 x 100 pixels" in failed["error"] and "raise max_pixels (--max-pixels)" in failed["error"]
    assert main([*command, str(tmp_path / "b.csv"), "--max-pixels", "40000"]) == 0


def test_names_in_any_letters_on_standard_output(trained: Trained, images: Path) -> None:
    """Whatever the encoding of the terminal, as in files of results."""
    file = min(images.iterdir()).rename(images / "日本é.png")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    arguments = [*COMMAND, "predict", str(trained.xml), str(file), "--threshold", "1"]
    ended = subprocess.run(arguments, capture_output=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "日本é.png".encode() in ended.stdout


def test_interrupted_calibration_does_not_advise_to_resume(
    trained: Trained, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what writes results can be resumed."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "attempt", interrupt)
    assert main(["calibrate", str(trained.xml), str(images), "--false-alarms", "0.5", "--output", "new.xml"]) == 130
    assert capsys.readouterr().err == "ganomaly-edge: interrupted.\n"
    output = images.parent / "results.csv"
    assert main(["predict", str(trained.xml), str(images), "--output", str(output)]) == 130
    assert "--resume continues the file" in capsys.readouterr().err


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.6, 1.2])
def test_interruption_at_any_time(trained: Trained, images: Path, delay: float) -> None:
    """Also while it starts: one line, and the status that shells expect."""
    # Programs in the background of a shell's script inherit that it is ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; import sys; from ganomaly_plugin.edge.command import main; print(flush=True); {EXIT}"
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    with running([sys.executable, "-c", code, "predict", str(trained.xml), "-"], **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert process.stderr.read() == f"{INTERRUPTION}\n"
    assert process.returncode == 130


INTERRUPT_AN_IMPORT = """
import signal, sys, weakref
from ganomaly_plugin.edge.command import main
signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "ganomaly_plugin.edge.bench":
            reference = weakref.ref(set(), lambda _: signal.raise_signal(signal.SIGINT))

sys.meta_path.insert(0, Finder())
"""


def test_interruption_where_python_swallows_exceptions() -> None:
    """As in the callbacks of its import system, where a lock would stay taken for ever."""
    command = [sys.executable, "-c", INTERRUPT_AN_IMPORT + EXIT, "bench", "lost.xml"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stderr == f"{INTERRUPTION}\n"
    assert ended.returncode == 130


@pytest.mark.parametrize("handler", [signal.default_int_handler, lambda *_: None], ids=["Python's", "own"])
def test_handlers_of_signals_stay(handler: Callable[..., Any]) -> None:
    """Whoever calls the command in Python keeps what Ctrl-C does, and may call it in any thread."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert main(["bench", "lost.xml"]) == 2
        assert signal.getsignal(signal.SIGINT) is handler
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(main, ["bench", "lost.xml"]).result() == 2
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("library", ["openvino", "numpy", "PIL"])
def test_missing_library(library: str) -> None:
    """The command says which and how to install it, also where the package was installed without dependencies."""
    code = f"import sys; sys.modules[{library!r}] = None; from ganomaly_plugin.edge.command import main; {EXIT}"
    ended = subprocess.run([sys.executable, "-c", code, "bench", "model.xml"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"ganomaly-edge: {library} is not installed: pip install openvino numpy pillow.\n"


def test_reader_that_goes_away(trained: Trained, images: Path) -> None:
    """As ``head`` does: no traceback."""
    arguments = [*COMMAND, "predict", str(trained.xml), "-"]
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    with running(arguments, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(str(images))
        process.stdin.close()
        assert process.wait(60) == 2
        assert process.stderr.read() == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """As every command has it."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"ganomaly-edge {version('ganomaly-plugin')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "m.xml", "a.png", "--threshold", "nan"], "--threshold: invalid finite number value: 'nan'"),
        (["predict", "m.xml", "a.png", "--threshold", "x"], "--threshold: invalid finite number value: 'x'"),
        (["predict", "m.xml", "a.png", "--max-pixels", "0"], "invalid whole number at least 1 value: '0'"),
        (["bench", "m.xml", "--seconds", "0"], "--seconds: invalid finite number above 0 value: '0'"),
        (["bench", "m.xml", "--size", "0", "8"], "invalid whole number at least 1 value: '0'"),
        (["model-server", "m.xml", "--output", "new", "--device", "FOO"], "'FOO' is none of OpenVINO's devices"),
        (["predict", "m.xml"], "required: paths"),
        ([], "required: COMMAND"),
    ],
    ids=str,
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """One line that names the argument, status 2."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_video(tmp_path: Path, trained: Trained) -> None:
    """Each frame is an image, under the video's name and its number."""
    import cv2

    path = tmp_path / "video.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for level in (0, 100, 200):
        video.write(np.full((48, 64, 3), level, dtype=np.uint8))
    video.release()
    output = tmp_path / "results.csv"
    main(["predict", str(trained.xml), str(path), "--output", str(output)])
    assert [row["path"] for row in rows(output)] == [f"{path}#{number}" for number in range(3)]


def test_shortest_bench(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """One image is measured, however short the time is."""
    assert main(["bench", str(trained.xml), "--size", "8", "8", "--seconds", "1e-9"]) == 0
    assert capsys.readouterr().out.count("images/s") == 2


def test_bench_of_images_that_are_too_large(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused in one line, before memory for them is sought."""
    assert main(["bench", str(trained.xml), "--size", "1000000", "1000000"]) == 2
    assert "--size is 1000000 x 1000000, more than 50000000 pixels" in capsys.readouterr().err


def test_no_standard_input(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a service without one."""
    monkeypatch.setattr("sys.stdin", None)
    assert main(["predict", str(trained.xml), "-"]) == 2
    assert capsys.readouterr().err.endswith("There is no standard input to read the list from (-).\n")


def test_bench(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """Percentiles in ascending order, and throughput both ways."""
    assert main(["bench", str(trained.xml), "--size", "32", "32", "--seconds", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("images/s") == 2
    percentiles = [float(part.split()[1]) for part in shown.splitlines()[1].removeprefix("latency: ").split(", ")]
    assert 0 < percentiles[0] <= percentiles[1] <= percentiles[2]


def test_commands_say_what_they_are_at(
    tmp_path: Path,
    trained: Trained,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In lines where there is no terminal, and not on standard output."""
    monkeypatch.setattr(progress_line, "SECONDS_BETWEEN_LINES", 0)
    model = str(trained.xml)
    main(["predict", model, str(images), "--output", str(tmp_path / "results.csv")])
    *lines, _ = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{number} images" for number in range(1, 13)]

    main(["calibrate", model, str(images), str(images), "--recall", "0.5", "--output", str(tmp_path / "new.xml")])
    assert capsys.readouterr().err.splitlines() == [f"{number} of 24 images" for number in range(1, 25)]

    main(["bench", model, "--size", "32", "32", "--seconds", "0.2"])
    kinds = {line.removesuffix(": 0 of 0.2 s") for line in capsys.readouterr().err.splitlines()}
    assert kinds == {"one at a time", "stream"}


def test_calibration_overwrites_no_picture(
    tmp_path: Path, trained: Trained, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photograph beside the new model stays, and nothing is scored before that is said."""
    photograph = tmp_path / "line.png"
    photograph.write_bytes(b"mine")
    command = ["calibrate", str(trained.xml), str(images), "--false-alarms", "0.5"]
    assert main([*command, "--output", str(tmp_path / "line.xml")]) == 2
    assert f"'{photograph}', where the scores are to be drawn, is there already" in capsys.readouterr().err
    assert photograph.read_bytes() == b"mine"
    assert not (tmp_path / "line.xml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lost.xml", "images"], "no file 'lost.xml'"),
        (["{xml}", "empty"], "The folder 'empty' holds no images"),
        (["{xml}", "*.bmp"], "No file matches '*.bmp'"),
        (["{xml}", "images", "--device", "TPU"], "no device 'TPU'"),
        (["{xml}", "images", "--output", "results.txt"], "must end in .csv or .jsonl"),
        (["{xml}", "images", "--resume"], "--resume needs"),
        (["{xml}", "images", "--threshold", "7"], "--threshold is 7, but the scores of"),
        (["{xml}", ""], "One of the paths is empty"),
        (["{xml}", "-"], "The list on standard input is empty"),
        (["{xml}", "-", "-"], "can be read once"),
        (["{bin}", "images"], "holds weights only: give"),
        (["{xml}", "images"], "'earlier.csv' holds results already"),
    ],
    ids=str,
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: Trained,
    images: Path,
    arguments: list[str],
    message: str,
) -> None:
    """Never a traceback, always the name of what is wrong, exit status 2, and earlier results stay as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "earlier.csv").write_text("path,score,label\n")
    weights = trained.xml.with_suffix(".bin")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    if arguments[1:] == ["-"]:
        arguments = [*arguments, "--output", "new.csv"]
    elif not {"--output", "--resume"} & set(arguments):
        arguments = [*arguments, "--output", "earlier.csv"]
    assert main(["predict", *(part.format(xml=trained.xml, bin=weights) for part in arguments)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert (tmp_path / "earlier.csv").read_text() == "path,score,label\n"

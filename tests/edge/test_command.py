# SPDX-License-Identifier: Apache-2.0
"""The command ``ganomaly-edge``: results, exit status, resuming, and one-line errors."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganomaly_plugin.edge import Detector
from ganomaly_plugin.edge.command import main

from .conftest import Trained


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
    assert captured.out.splitlines()[0] == "path,score,label"
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
    """The rest is scored, and the exit status says that something went wrong."""
    (images / "1-broken.png").write_bytes(b"\x89PNG")
    output = tmp_path / "results.csv"
    assert main(["predict", str(trained.xml), str(images), "--output", str(output), "--threshold", "1"]) == 2
    assert len(rows(output)) == 12
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


@pytest.mark.parametrize("name", ["other.csv", "other.jsonl"])
def test_other_files_are_not_resumed(
    tmp_path: Path, trained: Trained, images: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stay as they are, and the error names them."""
    output = tmp_path / name
    output.write_text("image,value\na.png,1\n")
    assert main(["predict", str(trained.xml), str(images), "--output", str(output), "--resume"]) == 2
    assert f"'{output}' holds no results that could be resumed" in capsys.readouterr().err
    assert output.read_text() == "image,value\na.png,1\n"


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


def test_bench(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """Percentiles in ascending order, and throughput both ways."""
    assert main(["bench", str(trained.xml), "--size", "32", "32", "--seconds", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("images/s") == 2
    percentiles = [float(part.split()[1]) for part in shown.splitlines()[1].removeprefix("latency: ").split(", ")]
    assert 0 < percentiles[0] <= percentiles[1] <= percentiles[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lost.xml", "images"], "no file 'lost.xml'"),
        (["{xml}", "empty"], "The folder 'empty' holds no images"),
        (["{xml}", "*.bmp"], "No file matches '*.bmp'"),
        (["{xml}", "images", "--device", "TPU"], "no device 'TPU'"),
        (["{xml}", "images", "--output", "results.txt"], "must end in .csv or .jsonl"),
        (["{xml}", "images", "--resume"], "--resume needs"),
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
    if not {"--output", "--resume"} & set(arguments):
        arguments = [*arguments, "--output", "earlier.csv"]
    assert main(["predict", *(part.format(xml=trained.xml) for part in arguments)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert (tmp_path / "earlier.csv").read_text() == "path,score,label\n"

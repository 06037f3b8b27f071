# SPDX-License-Identifier: Apache-2.0
"""What anomalib's command prints, in processes of its own, as a user sees it."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from anomalib.cli.cli import AnomalibCLI
from PIL import Image
from sklearn.datasets import load_digits

from tests.processes import running

CONFIG = Path(__file__).parents[1] / "configs" / "my_folder.yaml"
ANOMALIB = "import sys; sys.argv[0] = 'anomalib'; from anomalib.cli.cli import main; main()"
SMALL = ["--model.image_size", "64", "--model.pre_trained", "false", "--trainer.max_epochs", "1"]


def make_parts(root: Path, **numbers: int) -> Path:
    """Draw threes as good and eights as bad parts."""
    digits = load_digits()
    for kind, number in numbers.items():
        (root / kind).mkdir(parents=True)
        chosen = digits.images[digits.target == {"good": 3, "bad": 8}[kind]]
        for index, scan in enumerate(chosen[:number]):
            Image.fromarray((scan * 15.9).astype("uint8")).resize((48, 40)).save(root / kind / f"{index:03}.png")
    return root


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the stock command in a folder, and show what it prints."""
    command = [sys.executable, "-c", ANOMALIB, *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"} | {"COLUMNS": "300"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def parse(output: str) -> dict[str, str]:
    """Return the lines of the summary, which are the last of the output, by their names."""
    summary = output.rstrip().rpartition("\n\n")[2]
    return {line[:13].strip(): line[13:] for line in summary.splitlines()}


@pytest.mark.slow
def test_a_training_on_good_and_bad_parts_ends_in_a_summary(tmp_path: Path) -> None:
    """It takes nothing but the folder; each message comes once, no warning at all, and the next command runs."""
    make_parts(tmp_path / "parts", good=100, bad=10)
    trained = run(tmp_path, "train", "--config", str(CONFIG), "--data.root", "parts", *SMALL)
    assert trained.returncode == 0, trained.stderr
    assert "Warning" not in trained.stdout + trained.stderr
    assert "Loading anomalib" not in trained.stderr  # As it is in a terminal.
    messages = re.findall(r"INFO\s+(.*?) +\S+:\d+$", trained.stdout, re.MULTILINE)
    assert "Loading the callbacks" in messages
    for message in messages:
        assert (trained.stdout + trained.stderr).count(message) == 1
    for unwanted in ("Tip: ", "The following callbacks"):
        assert unwanted not in trained.stdout + trained.stderr

    summary = parse(trained.stdout)
    (table,) = re.findall(r"image_AUROC\W+([\d.]+)", trained.stdout)
    assert summary["image AUROC"] == f"{float(table):.3f}"
    assert float(summary["threshold"].split()[0]) > 0
    assert re.fullmatch(r"\d+ of 10 normal test images", summary["rejected"])
    assert re.fullmatch(r"\d+ of 10 anomalous test images", summary["found"])
    assert len(list((tmp_path / summary["pictures"]).rglob("*.png"))) == 20
    assert (tmp_path / summary["checkpoint"]).is_file()

    followed = run(tmp_path, *shlex.split(summary["next"])[1:])
    assert followed.returncode == 0, followed.stderr
    (exported,) = tmp_path.rglob("model.xml")

    tested = run(
        tmp_path, "test", "--config", str(next(tmp_path.rglob("config.yaml"))), "--ckpt_path", summary["checkpoint"]
    )
    assert tested.returncode == 0, tested.stderr
    again = parse(tested.stdout)
    program, *rest = shlex.split(again.pop("next"))
    assert Path(program).name == "ganomaly-edge"
    assert rest == ["predict", str(exported.relative_to(tmp_path)), "PICTURES"]
    assert again == {name: value for name, value in summary.items() if name != "next"}


def test_a_training_on_good_parts_alone_says_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is a threshold, and no AUROC."""
    monkeypatch.chdir(tmp_path)
    make_parts(tmp_path / "parts", good=25)
    AnomalibCLI(["train", "--config", str(CONFIG), "--data.root", "parts", *SMALL, "--trainer.accelerator", "cpu"])
    summary = parse(capsys.readouterr().out)
    assert summary["image AUROC"].startswith("not known")
    assert summary["rejected"].endswith("of 3 normal test images")
    assert "found" not in summary


@pytest.mark.parametrize("options", [["--model.post_processor", "false"], ["--model.visualizer", "false"]])
def test_the_summary_leaves_out_what_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """No threshold without a post-processor, and no pictures without a visualiser."""
    monkeypatch.chdir(tmp_path)
    make_parts(tmp_path / "parts", good=25, bad=5)
    given = ["--config", str(CONFIG), "--data.root", "parts", *SMALL, "--trainer.accelerator", "cpu", *options]
    AnomalibCLI(["train", *given])
    summary = parse(capsys.readouterr().out)
    assert ("threshold" in summary) == ("post_processor" not in options[0])
    assert ("pictures" in summary) == ("visualizer" not in options[0])
    assert 0 <= float(summary["image AUROC"]) <= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_loading_is_announced_in_a_terminal() -> None:
    """At once."""
    terminal, other_end = os.openpty()
    subprocess.run([sys.executable, "-c", ANOMALIB, "--help"], stderr=other_end, timeout=300)
    os.close(other_end)
    printed = os.read(terminal, 1000)
    os.close(terminal)
    assert printed.startswith(b"Loading anomalib")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize("in_terminal", [True, False])
def test_lines_say_what_a_training_is_at_where_no_terminal_shows_bars(tmp_path: Path, in_terminal: bool) -> None:
    """On standard error, and with the step that the training is in."""
    make_parts(tmp_path / "parts", good=25, bad=5)
    often = f"from ganomaly_plugin import progress_lines; progress_lines.SECONDS_BETWEEN_LINES = 0.01; {ANOMALIB}"
    command = [sys.executable, "-c", often, "train", "--config", str(CONFIG), "--data.root", "parts", *SMALL]
    terminal, other_end = os.openpty()
    with (
        (tmp_path / "output.txt").open("wb") as file,
        running(
            command, seconds=300, cwd=tmp_path, stdout=other_end if in_terminal else file, stderr=subprocess.PIPE
        ) as process,
    ):
        os.close(other_end)
        if in_terminal:
            Thread(target=read_all, args=[terminal], daemon=True).start()
        errors = process.communicate()[1]
    assert process.returncode == 0, errors
    lines = re.findall(r"^\d+ s: (\w+)", errors, re.MULTILINE)
    assert set(lines) == (set() if in_terminal else {"train", "epoch", "test"})


def read_all(terminal: int) -> None:
    """Read what a terminal is sent until nobody sends."""
    with suppress(OSError):
        while os.read(terminal, 10_000):
            pass


@pytest.mark.slow
def test_warnings_of_our_own_and_of_others_stay() -> None:
    """Only those of the list go."""
    script = (
        "import anomalib.cli, warnings; warnings.warn('of a user', UserWarning); warnings.warn('ours', FutureWarning)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.stderr.count("Warning") == 2
    assert "of a user" in result.stderr and "ours" in result.stderr


@pytest.mark.slow
def test_python_w_brings_all_warnings_back() -> None:
    """Who asks for warnings gets them."""
    result = subprocess.run(
        [sys.executable, "-W", "default::FutureWarning", "-c", "import anomalib.cli"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "timm.models.layers is deprecated" in result.stderr

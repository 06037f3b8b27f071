# SPDX-License-Identifier: Apache-2.0
"""A comparison from configuration to results: its figures, its failures, and how it is resumed."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anomalib.cli.cli import AnomalibCLI
from filelock import FileLock
from sklearn.metrics import average_precision_score, roc_auc_score

from ganomaly_plugin.compare import compare, timing
from ganomaly_plugin.compare.comparison import print_plan
from ganomaly_plugin.compare.estimate import estimate
from ganomaly_plugin.compare.grid import read_grid
from ganomaly_plugin.compare.record import find_damage, write_json
from ganomaly_plugin.compare.run import peak_memory
from ganomaly_plugin.compare.runners import visible_gpus
from ganomaly_plugin.compare.summary import BEST_EPOCH, CHANGE, MEAN
from tests.processes import running

from .conftest import Compared, configuration, ganomaly

pytestmark = pytest.mark.slow

RESIZE = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}
PROGRAM = Path(sys.executable).with_name("anomalib")
DONE = [("GANomaly", 0), ("GANomaly", 1), ("Padim", 0), ("Padim", 1)]


def read_scores(folder: Path, model: str, seed: int) -> dict[str, np.ndarray]:
    """Read the raw scores and labels of a run."""
    return dict(np.load(folder / "runs" / model / "digits" / "8" / str(seed) / "scores.npz"))


def test_metrics_are_those_of_raw_scores(compared: Compared) -> None:
    """scikit-learn finds the same in the scores, which no post-processing touched: GANomaly's are not in [0, 1)."""
    for result in compared.summary.done:
        arrays = result.arrays()
        expected = roc_auc_score(arrays["labels"], arrays["scores"])
        assert result.record["metrics"]["image_AUROC"] == pytest.approx(expected, abs=1e-9)
        expected = average_precision_score(arrays["labels"], arrays["scores"])
        assert result.record["metrics"]["image_AP"] == pytest.approx(expected, abs=1e-9)
    assert read_scores(compared.folder, "Padim", 0)["scores"].max() > 1


def test_all_models_saw_the_same_images(compared: Compared) -> None:
    """Within a seed, training and test images have one hash; seeds split otherwise."""
    hashes = compared.summary.hashes
    assert [len(found) for found in hashes.values()] == [1, 1]
    assert len(set.union(*hashes.values())) == 2
    for seed in (0, 1):
        one, other = (read_scores(compared.folder, model, seed)["labels"] for model in ("GANomaly", "Padim"))
        assert (one == other).all()


def test_means_and_differences(compared: Compared) -> None:
    """The table holds means over seeds, and differences to the reference with intervals around them."""
    with (compared.folder / "results.csv").open() as file:
        rows = {(row["category"], row["model"], row["metric"]): row for row in csv.DictReader(file)}
    means = {
        model: np.mean(
            [
                roc_auc_score(found["labels"], found["scores"])
                for found in (read_scores(compared.folder, model, seed) for seed in (0, 1))
            ]
        )
        for model in ("GANomaly", "Padim")
    }
    for category in ("8", MEAN):
        for model, mean in means.items():
            assert float(rows[category, model, "image_AUROC"]["mean"]) == pytest.approx(mean)
        row = rows[category, "Padim", "image_AUROC"]
        assert float(row["difference_mean"]) == pytest.approx(means["Padim"] - means["GANomaly"])
        low, high = (float(row[f"difference_{bound}_over_images"]) for bound in ("low", "high"))
        assert low < float(row["difference_mean"]) < high
        assert (row["seeds"], row["difference_low_over_seeds"], row["difference_p_value"]) == ("2", "", "")
    assert compared.summary.pairwise_comparison("GANomaly", "Padim") == (0, 1, 0)
    assert "n/a: 2 seeds" in (compared.folder / "report.md").read_text()
    assert "n/a: 2 seeds" in (compared.folder / "report.html").read_text()


def test_figures_of_epochs_stand_apart(compared: Compared) -> None:
    """Best epoch and mean change of both seeds, as their stored epochs have them, have no part in any other figure."""
    with (compared.folder / "results.csv").open() as file:
        rows = {(row["category"], row["model"], row["metric"]): row for row in csv.DictReader(file)}
    folder = compared.folder / "runs" / "GANomaly" / "digits" / "8"
    records = [json.loads((folder / seed / "result.json").read_text()) for seed in "01"]
    first, second = (record["epochs"] for record in records)
    assert [len(first), len(second)] == [3, 3]
    assert [first[-1], second[-1]] == [record["metrics"]["image_AUROC"] for record in records]
    best = [max(first), max(second)]
    change = [(abs(a - b) + abs(b - c)) / 2 for a, b, c in (first, second)]
    for metric, values in ((BEST_EPOCH, best), (CHANGE, change)):
        row = rows[MEAN, "GANomaly", metric]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert float(row["std"]) == pytest.approx(np.std(values, ddof=1))
        assert row["low_over_images"] == row["high_over_images"] == ""
    last = rows[MEAN, "GANomaly", "image_AUROC"]
    columns = [(float(last["mean"]), float(last["std"])), *((np.mean(x), np.std(x, ddof=1)) for x in (best, change))]
    line = "| GANomaly | " + " | ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in columns) + " |"
    text = (compared.folder / "report.md").read_text()
    assert line in text
    assert "| model | last epoch | best epoch on the test set, selected on it | mean change, last 5 epochs |" in text
    assert "best epoch on the test set, selected on it" in (compared.folder / "report.html").read_text()
    assert BEST_EPOCH not in compared.summary.metrics("digits")


def test_failures_are_reported_and_the_rest_goes_on(compared: Compared) -> None:
    """A run that fails says why, and takes no other with it."""
    failed = [result for result in compared.summary.results if not result.record]
    assert [result.reason for result in failed] == ["RuntimeError: out of patience"] * 2
    assert [(result.run.model, result.run.seed) for result in compared.summary.done] == DONE[::2] + DONE[1::2]
    assert "out of patience" in (compared.folder / "report.md").read_text()


def test_exports_are_timed(compared: Compared) -> None:
    """Each format of each model that was trained has latencies, a throughput and a size."""
    timings = json.loads((compared.folder / "results.json").read_text())["timings"]
    assert [(line["model"], line["format"]) for line in timings] == [
        (model, name) for model in ("GANomaly", "Padim") for name in ("torch", "FP32")
    ]
    assert all(0 < line["p50"] <= line["p95"] and line["images_per_second"] > 0 for line in timings)
    assert all(line["megabytes"] > 0 for line in timings)


def test_export_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    """In the last line that its process wrote."""
    lost = timing.Export("torch", tmp_path / "model.pt", (32, 32))
    (measured,) = timing.measure([lost], lambda: None)
    assert measured.reason.startswith("FileNotFoundError")
    assert "model.pt" in measured.reason
    assert measured.p50 is None


def test_results_are_not_overwritten(compared: Compared) -> None:
    """Neither silently nor by results of other settings."""
    config = configuration(compared.digits, ganomaly())
    with pytest.raises(FileExistsError, match="continue them with --resume, or name another folder"):
        compare(config, compared.folder)
    with pytest.raises(FileExistsError, match="holds another comparison, with GANomaly/digits/8/. in it: name another"):
        compare(configuration(compared.digits, ganomaly(latent_vec_size=9)), compared.folder, resume=True)


def copy_finished(compared: Compared, output: Path, *seeds: int) -> dict[str, Any]:
    """Copy GANomaly's finished runs and timings, and return the configuration of its runs with both seeds."""
    for seed in seeds:
        run = Path("runs", "GANomaly", "digits", "8", str(seed))
        shutil.copytree(compared.folder / run, output / run)
    timings = json.loads((compared.folder / "timings.json").read_text())
    write_json(output / "timings.json", [line for line in timings if line["model"] == "GANomaly"])
    return configuration(compared.digits, ganomaly()) | {"openvino": ["FP32"]}


def test_killed_at_any_moment_and_resumed(
    compared: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the second of two trainings, the stock command goes on and ends with the same figures."""
    import psutil

    output = tmp_path / "results"
    section = copy_finished(compared, output, 0)
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump({"compare": section}))
    command = [str(PROGRAM), "compare", "--config", str(config), "--output", str(output), "--jobs", "2", "--resume"]
    finished = {path: path.stat().st_mtime_ns for path in output.glob("runs/GANomaly/digits/8/0/*.*")}
    assert finished

    with running(command, seconds=300, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any("GANomaly on digits (8), seed 1: " in line for line in process.stdout)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert list(output.rglob("*.unfinished*"))
    assert not (output / "report.html").exists()

    compare(config, output, jobs=2, resume=True)
    printed = capsys.readouterr().out
    assert "GANomaly on digits (8), seed 0" not in printed
    assert "GANomaly on digits (8), seed 1: loading\n" in printed
    assert not list(output.rglob("*.unfinished*"))
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    resumed, whole = (read_scores(folder, "GANomaly", 1) for folder in (output, compared.folder))
    assert all((resumed[name] == whole[name]).all() for name in whole)
    rows = [(folder / "results.csv").read_text().splitlines() for folder in (output, compared.folder)]
    assert rows[0] == [row for row in rows[1] if "Padim" not in row]


def damage(file: Path, kind: str) -> None:
    """Damage a file as disks and people do."""
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "middle":
        half = len(content) // 2
        file.write_bytes(
            content[:half] + bytes(byte ^ 0xFF for byte in content[half : half + 40]) + content[half + 40 :]
        )
    else:
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "other": b"{}"}[kind])


@pytest.mark.parametrize("kind", ["missing", "empty", "half", "middle", "other"])
@pytest.mark.parametrize("name", ["run.json", "result.json", "scores.npz", "gallery.npz", "exports/torch/*/*/*.pt"])
def test_damage_is_found(name: str, kind: str, compared: Compared, tmp_path: Path) -> None:
    """In every file of a finished run, and named. Damaged exports say what is wrong with them when they are timed."""
    folder = tmp_path / "run"
    shutil.copytree(compared.folder / "runs" / "GANomaly" / "digits" / "8" / "0", folder)
    assert find_damage(folder) == ""
    (file,) = folder.glob(name)
    damage(file, kind)
    harmless = kind != "missing" and name.startswith("exports")
    assert (file.name in find_damage(folder)) != harmless


def test_damaged_run_runs_again(
    compared: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone, with a word, and also where its timings are damaged, or what says which run it is."""
    monkeypatch.setattr(timing, "ROUNDS", 1)
    config = copy_finished(compared, tmp_path, 0, 1)
    runs = tmp_path / "runs" / "GANomaly"
    damage(runs / "digits" / "8" / "1" / "result.json", "half")
    damage(runs / "digits" / "8" / "1" / "run.json", "half")
    (tmp_path / "timings.json").write_text("[{")
    kept = (runs / "digits" / "8" / "0" / "result.json").stat().st_mtime_ns
    left = runs / "digits" / "8" / "1.unfinished-x"
    left.mkdir()
    (left / "run.json").write_text("")
    summary = compare(config, tmp_path, resume=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "damaged GANomaly on digits (8), seed 1: run.json cannot be read (JSONDecodeError), so it runs again" in printed
    )
    assert "damaged timings.json: the exports are timed again" in printed
    assert len(summary.done) == 2
    assert (runs / "digits" / "8" / "0" / "result.json").stat().st_mtime_ns == kept
    assert not left.exists()


def test_one_comparison_at_a_time(compared: Compared, tmp_path: Path) -> None:
    """Two never write into one folder."""
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(FileExistsError, match="Another comparison is writing to .*: wait for its end, or name another"),
    ):
        compare(configuration(compared.digits, ganomaly()), tmp_path, resume=True)


def test_json_is_valid(compared: Compared, tmp_path: Path) -> None:
    """Numbers that JSON does not have become null, wherever they stand."""

    def refuse(name: str) -> None:
        msg = f"{name} is no JSON"
        raise AssertionError(msg)

    for file in compared.folder.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)
    content = {"a": [float("nan"), {"b": (math.inf, -math.inf, 1.5)}], "c": np.float64("nan"), "d": 3}
    write_json(tmp_path / "x.json", content)
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert found == {"a": [None, {"b": [None, None, 1.5]}], "c": None, "d": 3}


@pytest.mark.parametrize(
    ("own", "count", "expected"),
    [(None, 2, ["0", "1"]), ("3, 5", 2, ["3", "5"]), ("GPU-7f", 1, ["GPU-7f"]), ("1,-1,0", 1, ["1"]), ("", 0, [])],
)
def test_own_visible_gpus_are_respected(
    own: str | None, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings use those GPUs that this process may use, and no others."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if own is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    assert visible_gpus(count) == expected


def test_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process, and on the GPU where the training was there, not where the machine merely has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3_000_000)
    found = peak_memory(torch.device("cpu"))
    assert found["peak_gpu_megabytes"] is None
    assert found["peak_megabytes"] is not None
    assert 10 < found["peak_megabytes"] < 1e6
    assert peak_memory(torch.device("cuda:1"))["peak_gpu_megabytes"] == 3


def test_runs_without_the_module_resource() -> None:
    """Windows has none."""
    program = (
        "import sys; sys.modules['resource'] = None; import torch\n"
        "from ganomaly_plugin.compare import compare, run\n"
        "assert run.peak_memory(torch.device('cpu')) == {'peak_megabytes': None, 'peak_gpu_megabytes': None}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ray_survives_the_death_of_a_worker(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real local cluster, a worker killed in the middle loses nothing, and the scores are those of processes."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Its own 15 would let all other tests go before.
    config = copy_finished(compared, tmp_path, 0)
    command = [sys.executable, "-c", KILL_FIRST_WORKER, str(os.getpid())]
    with running(command, seconds=300, stdout=subprocess.PIPE) as killer:
        try:
            summary = compare(config, tmp_path, jobs=2, runner="ray", resume=True)
        finally:
            ray.shutdown()
        assert killer.communicate(timeout=30)[0] == "killed\n"
    assert len(summary.done) == 2
    there, here = (read_scores(folder, "GANomaly", 1) for folder in (tmp_path, compared.folder))
    assert all((there[name] == here[name]).all() for name in here)


KILL_FIRST_WORKER = """
import sys, time, psutil
while True:
    for process in psutil.process_iter(["cmdline"]):
        if "ganomaly_plugin.compare.run" in (process.info["cmdline"] or []):
            try:
                worker = process.parent()
                if worker is not None and "ray::" in " ".join(worker.cmdline()):
                    worker.kill()
                    print("killed", flush=True)
                    raise SystemExit
            except psutil.Error:  # It has just ended, or was somebody else's.
                pass
    time.sleep(0.2)
"""


def test_dry_run_prints_the_plan(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    """The trainings, and about how long they take."""
    print_plan(configuration(compared.digits, ganomaly()), jobs=2)
    printed = capsys.readouterr().out
    assert "2 trainings, under a minute with 2 at a time" in printed
    assert "GANomaly" in printed
    assert "timed" not in printed


@pytest.mark.parametrize(
    ("trainer", "epochs"),
    [
        ({}, 1000),
        ({"max_epochs": 50}, 50),
        ({"max_steps": 60}, 15),  # Two optimisers make two steps a batch, four an epoch.
        ({"max_epochs": 4, "min_epochs": 2}, 4),
        ({"max_epochs": -1}, math.inf),
    ],
)
def test_estimate_is_of_what_the_trainer_will_do(compared: Compared, trainer: dict[str, Any], epochs: float) -> None:
    """Epochs as its own limits allow, Lightning's defaults among them; time limits the rest."""
    pre_processor = {"class_path": "anomalib.pre_processing.PreProcessor", "init_args": {"transform": RESIZE}}
    stock = {
        "class_path": "Ganomaly",
        "init_args": {"n_features": 8, "pre_processor": pre_processor},
        "trainer": {"limit_train_batches": 2} | trainer,
    }
    (run, _) = read_grid(configuration(compared.digits, stock) | {"every_epoch": False}).runs
    found = estimate(run)
    assert found.epochs == epochs
    assert math.isfinite(found.seconds) == math.isfinite(epochs)
    assert math.isfinite(estimate(replace(run, trainer=run.trainer | {"max_time": {"seconds": 20}})).seconds)


def test_plan_of_a_training_without_end(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    """Is said, and so is what is timed."""
    model = ganomaly() | {"trainer": {"max_epochs": -1}}
    print_plan(configuration(compared.digits, model) | {"openvino": ["FP32"]})
    printed = capsys.readouterr().out
    assert "no limit" in printed
    assert "2 trainings, no end with 1 at a time" in printed
    assert "Then the exports of 1 of them are timed: PyTorch, FP32" in printed


def test_data_that_cannot_be_measured(compared: Compared, tmp_path: Path) -> None:
    """Pixels without masks, and a test without anomalies, are refused before anything trains."""
    config = configuration(compared.digits, ganomaly())
    with pytest.raises(ValueError, match=r"digits .8. has no masks for pixel_AUPRO: leave these out of metrics"):
        compare(config | {"metrics": ["image_AUROC", "pixel_AUPRO"]}, tmp_path)
    folder = {"name": "parts", "normal_dir": "0", "normal_test_dir": "3", "root": str(compared.digits)}
    config["data"] = {"class_path": "Folder", "name": "parts", "init_args": folder}
    with pytest.raises(ValueError, match=r"parts .all. has no anomalous test image"):
        compare(config, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_equals_the_stock_command(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`anomalib test` finds the same figures of raw scores in the checkpoint of a run."""
    run = next(run for run in compared.summary.grid.runs if run.path == Path("GANomaly/digits/8/0"))
    data = {"class_path": "digits", "init_args": run.data_config["init_args"] | {"seed": 0}}
    config = tmp_path / "test.yaml"
    config.write_text(yaml.safe_dump({"model": run.model_config, "data": data, "trainer": {"accelerator": "cpu"}}))
    checkpoint = compared.folder / "runs" / run.path / "model.ckpt"
    monkeypatch.chdir(tmp_path)
    options = ["--config", str(config), "--model.visualizer", "false", "--ckpt_path", str(checkpoint)]
    reported = AnomalibCLI(["test", *options]).engine.trainer.callback_metrics
    scores = read_scores(compared.folder, "GANomaly", 0)
    for metric, function in (("image_AUROC", roc_auc_score), ("image_AveragePrecision", average_precision_score)):
        assert float(reported[metric]) == pytest.approx(function(scores["labels"], scores["scores"]), abs=1e-6)


def test_bad_number_of_jobs(compared: Compared, tmp_path: Path) -> None:
    """Refused before anything runs."""
    with pytest.raises(ValueError, match="jobs is 0; it must be 1 or more"):
        compare(configuration(compared.digits, ganomaly()), tmp_path, jobs=0)

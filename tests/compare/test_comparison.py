# SPDX-License-Identifier: Apache-2.0
"""A comparison from configuration to results: its figures, its failures, and how it is resumed."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

from ganomaly_plugin.compare import compare, timing
from ganomaly_plugin.compare.comparison import print_plan
from ganomaly_plugin.compare.summary import BEST_EPOCH, CHANGE, MEAN

from .conftest import Compared, configuration, ganomaly

pytestmark = pytest.mark.slow

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
            [roc_auc_score(*reversed(read_scores(compared.folder, model, seed).values())) for seed in (0, 1)]
        )
        for model in ("GANomaly", "Padim")
    }
    for category in ("8", MEAN):
        for model, mean in means.items():
            assert float(rows[category, model, "image_AUROC"]["mean"]) == pytest.approx(mean)
        row = rows[category, "Padim", "image_AUROC"]
        assert float(row["difference_mean"]) == pytest.approx(means["Padim"] - means["GANomaly"])
        assert float(row["difference_low"]) < float(row["difference_mean"]) < float(row["difference_high"])
    better, tied, worse = compared.summary.pairwise_comparison("GANomaly", "Padim")
    assert better + tied + worse == 1
    assert compared.summary.pairwise_comparison("Padim", "GANomaly") == (worse, tied, better)


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
        assert row["low"] == row["high"] == ""
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
    assert np.isnan(measured.p50)


def test_results_are_not_overwritten(compared: Compared) -> None:
    """Neither silently nor by results of other settings."""
    config = configuration(compared.digits, ganomaly())
    with pytest.raises(FileExistsError, match="continue them with --resume, or name another folder"):
        compare(config, compared.folder)
    with pytest.raises(FileExistsError, match="holds another comparison, with GANomaly/digits/8/. in it: name another"):
        compare(configuration(compared.digits, ganomaly(latent_vec_size=9)), compared.folder, resume=True)


def test_killed_at_any_moment_and_resumed(compared: Compared, tmp_path: Path) -> None:
    """Killed after the first of two trainings, the stock command goes on and ends with the same figures."""
    import psutil

    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump({"compare": configuration(compared.digits, ganomaly()) | {"openvino": []}}))
    output = tmp_path / "results"
    command = [str(PROGRAM), "compare", "--config", str(config), "--output", str(output), "--jobs", "2"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("done GANomaly on digits (8)" in line for line in process.stdout)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not (output / "report.html").exists()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("runs/GANomaly/digits/8/[01]/result.json")}
    assert finished

    subprocess.run([*command, "--resume"], check=True)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    for seed in (0, 1):
        resumed, whole = (read_scores(folder, "GANomaly", seed) for folder in (output, compared.folder))
        assert all((resumed[name] == whole[name]).all() for name in whole)
    rows = [(folder / "results.csv").read_text().splitlines() for folder in (output, compared.folder)]
    assert rows[0] == [row for row in rows[1] if "Padim" not in row]


def test_ray_survives_the_death_of_a_worker(compared: Compared, tmp_path: Path) -> None:
    """On a real local cluster, a worker killed in the middle loses nothing, and the scores are those of processes."""
    ray = pytest.importorskip("ray")
    config = configuration(compared.digits, ganomaly()) | {"openvino": []}
    killer = subprocess.Popen([sys.executable, "-c", KILL_FIRST_WORKER, str(os.getpid())], stdout=subprocess.PIPE)
    try:
        summary = compare(config, tmp_path, jobs=2, runner="ray")
    finally:
        ray.shutdown()
        killed = killer.communicate(timeout=30)[0]
    assert killed == b"killed\n"
    assert len(summary.done) == 2
    for seed in (0, 1):
        there, here = (read_scores(folder, "GANomaly", seed) for folder in (tmp_path, compared.folder))
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
    assert "2 trainings, about 0 minutes with 2 at a time" in printed
    assert "GANomaly" in printed


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


def test_equals_the_stock_command(compared: Compared, tmp_path: Path) -> None:
    """`anomalib test` finds the same figures of raw scores in the checkpoint of a run."""
    run = next(run for run in compared.summary.grid.runs if run.path == Path("GANomaly/digits/8/0"))
    data = {"class_path": "digits", "init_args": run.data_config["init_args"] | {"seed": 0}}
    config = tmp_path / "test.yaml"
    config.write_text(yaml.safe_dump({"model": run.model_config, "data": data, "trainer": {"accelerator": "cpu"}}))
    checkpoint = compared.folder / "runs" / run.path / "model.ckpt"
    command = [str(PROGRAM), "test", "--config", str(config), "--ckpt_path", str(checkpoint)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    scores = read_scores(compared.folder, "GANomaly", 0)
    for metric, function in (("image_AUROC", roc_auc_score), ("image_AveragePrecision", average_precision_score)):
        (reported,) = re.findall(rf"{metric}\W+([\d.]+)", printed)
        assert float(reported) == pytest.approx(function(scores["labels"], scores["scores"]), abs=1e-6)


def test_bad_number_of_jobs(compared: Compared, tmp_path: Path) -> None:
    """Refused before anything runs."""
    with pytest.raises(ValueError, match="jobs is 0; it must be 1 or more"):
        compare(configuration(compared.digits, ganomaly()), tmp_path, jobs=0)

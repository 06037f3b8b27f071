# SPDX-License-Identifier: Apache-2.0
"""Programs of others run the export, and ours runs where PyTorch and anomalib are not installed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Trained

ROOT = Path(__file__).parents[2]

MODEL_API = """
import json, sys
import numpy as np
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import AnomalyDetection
from PIL import Image
config = {"INFERENCE_PRECISION_HINT": "f32"}
model = AnomalyDetection.create_model(OpenvinoAdapter(create_core(), sys.argv[1], plugin_config=config))
for path in sys.argv[2:]:
    result = model(np.array(Image.open(path).convert("RGB")))
    print(json.dumps([result.pred_score, result.pred_label, result.anomaly_map.tolist(), result.pred_mask.tolist()]))
"""


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, cwd=cwd)


def new_environment(folder: Path, *packages: str | Path) -> Path:
    """Make a virtual environment with the packages and return its folder of programs."""
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    installed = run(folder / "bin" / "pip", "install", *packages)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


@pytest.mark.network
@pytest.mark.slow
def test_device_without_pytorch_and_anomalib(trained: Trained, tmp_path: Path) -> None:
    """The command and the hook in an environment that holds only OpenVINO, NumPy and Pillow."""
    programs = new_environment(tmp_path / "device", "openvino", "numpy", "pillow")
    installed = run(programs / "pip", "install", "--no-deps", ROOT)
    assert installed.returncode == 0, installed.stderr
    listed = json.loads(run(programs / "pip", "list", "--format", "json").stdout)
    assert not {"torch", "anomalib"} & {package["name"] for package in listed}
    output = tmp_path / "results.csv"
    ended = run(
        programs / "ganomaly-edge", "predict", trained.xml, *trained.paths[:5], "--output", output, cwd=tmp_path
    )
    assert ended.returncode in {0, 1}, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    with output.open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(scores, trained.values("pred_score")[:5], atol=1e-4)


@pytest.mark.network
@pytest.mark.slow
def test_intel_model_api(trained: Trained, tmp_path: Path) -> None:
    """Score, label, map and mask from a uint8 image; its OpenCV is older than anomalib's."""
    programs = new_environment(tmp_path / "model_api", "openvino-model-api", "pillow")
    ended = run(programs / "python", "-c", MODEL_API, trained.xml, *trained.paths[:5], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    maps, masks = (trained.values(name).reshape(-1, 32, 32) for name in ("anomaly_map", "pred_mask"))
    for index, line in enumerate(line for line in ended.stdout.splitlines() if line.startswith("[")):
        score, label, anomaly_map, mask = json.loads(line)
        assert score == pytest.approx(trained.values("pred_score")[index], abs=1e-4)
        assert label == str(trained.values("pred_label")[index])
        # It scales maps to bytes and to the size of the image, 8x8 pixels.
        bytes_ = Image.fromarray(np.round(maps[index] * 255).astype(np.uint8))
        assert np.shape(anomaly_map) == np.shape(mask) == (8, 8)
        assert np.mean(anomaly_map) == pytest.approx(np.mean(np.asarray(bytes_)), abs=10)
        assert np.mean(mask) == pytest.approx(masks[index].mean(), abs=0.15)
    assert index == 4


def test_inferencer_of_anomalib(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what the engine gives."""
    from anomalib.deploy import OpenVINOInferencer

    monkeypatch.chdir(tmp_path)  # It leaves a cache where it runs.
    inferencer = OpenVINOInferencer(trained.xml, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    for index, path in enumerate(trained.paths[:5]):
        prediction = inferencer.predict(path)
        assert float(prediction.pred_score.item()) == pytest.approx(trained.values("pred_score")[index], abs=1e-4)
        np.testing.assert_allclose(
            np.squeeze(prediction.anomaly_map), np.squeeze(trained.values("anomaly_map")[index]), atol=1e-4
        )


def test_benchmark_app(trained: Trained) -> None:
    """OpenVINO's own benchmark runs the dynamic graph at a given size."""
    program = Path(sys.executable).with_name("benchmark_app")
    ended = run(program, "-m", trained.xml, "-d", "CPU", "-t", "1", "-data_shape", "[1,3,32,32]")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Throughput:" in ended.stdout

# SPDX-License-Identifier: Apache-2.0
"""Runs that score the test images after every epoch, and the images of the published figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ganomaly_plugin.compare.grid import read_grid
from ganomaly_plugin.compare.run import train_and_test
from ganomaly_plugin.compare.summary import BEST_EPOCH, CHANGE, epoch_figures

from .conftest import Compared, configuration, ganomaly

RESIZE = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}
STOCK = {
    "class_path": "Ganomaly",
    "init_args": {
        "n_features": 8,
        "pre_processor": {"class_path": "anomalib.pre_processing.PreProcessor", "init_args": {"transform": RESIZE}},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("model", [ganomaly(average_weights=False), STOCK], ids=["ours", "stock"])
def test_epochs_are_those_of_shorter_trainings(model: dict[str, Any], compared: Compared, tmp_path: Path) -> None:
    """Trainings of one and two epochs that nothing watches end where a watched one of three epochs has passed."""
    run = read_grid(configuration(compared.digits, model) | {"openvino": []}).runs[0]
    found: dict[int, dict[str, Any]] = {}
    for epochs in (1, 2, 3):
        folder = tmp_path / str(epochs)
        folder.mkdir()
        trainer = run.trainer | {"max_epochs": epochs, "limit_train_batches": 4}
        train_and_test(replace(run, trainer=trainer, every_epoch=epochs == 3), folder)
        found[epochs] = json.loads((folder / "result.json").read_text())
    last = [found[epochs]["metrics"]["image_AUROC"] for epochs in (1, 2, 3)]
    assert found[3]["epochs"] == pytest.approx(last, abs=1e-12)
    assert len(set(last)) == 3
    assert found[1]["epochs"] == []


def test_epoch_figures() -> None:
    """Changes of the last five epochs: 0.2, 0.1, 0.1, 0.4. One epoch has a best one and no change."""
    figures = epoch_figures([0.9, 0.1, 0.3, 0.2, 0.3, 0.7])
    assert figures == {BEST_EPOCH: 0.9, CHANGE: pytest.approx(0.2)}
    assert epoch_figures([0.4]) == {BEST_EPOCH: 0.4}
    assert epoch_figures([]) == {}


@pytest.mark.data
def test_published_figures_are_of_these_images(real_data: Path, tmp_path: Path) -> None:
    """The small budget of MNIST, whose hashes are those of the images that the published figures come from."""
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "compare" / "mnist_small.yaml").read_text())
    runs = [run for run in read_grid(config["compare"]).runs if (run.model, run.category) == ("GANomaly", "8")]
    run = replace(runs[0], trainer={"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2})
    run.data_config["init_args"]["root"] = str(real_data / "mnist")
    train_and_test(run, tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["images"] == {"train": 6400, "test": 4000}
    assert record["data"] == {"train": "19be20486ae9fced", "test": "e74c7723e465ee89"}
    assert len(record["epochs"]) == 1

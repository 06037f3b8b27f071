# SPDX-License-Identifier: Apache-2.0
"""One finished comparison for all tests."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ganomaly_plugin.compare import compare, timing
from ganomaly_plugin.compare.summary import Summary

TRAINER = {"max_epochs": 3, "limit_train_batches": 2}


def ganomaly(name: str = "GANomaly", **kwargs: Any) -> dict[str, Any]:
    """Configure a small GANomaly."""
    arguments = {"image_size": 32, "input_channels": 1, "n_features": 8, "latent_vec_size": 8} | kwargs
    return {"name": name, "class_path": "ganomaly", "init_args": arguments, "trainer": TRAINER}


def configuration(root: Path, *models: dict[str, Any]) -> dict[str, Any]:
    """Configure a comparison of models on the digits, the eight anomalous, with two seeds."""
    data = {"class_path": "digits", "init_args": {"root": str(root), "abnormal_class": {"grid": [8]}}}
    return {
        "accelerator": "cpu",
        "every_epoch": True,
        "seed": {"grid": [0, 1]},
        "model": {"grid": list(models)},
        "data": data,
    }


class Compared(NamedTuple):
    """A comparison, where it lies and where the digits are."""

    folder: Path
    summary: Summary
    digits: Path


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Ours, anomalib's PaDiM, and a third party's model that fails, two at a time."""
    root = tmp_path_factory.mktemp("compare")
    resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [64, 64]}}
    padim = {
        "class_path": "Padim",
        "init_args": {
            "backbone": "resnet18",
            "layers": ["layer1"],
            "n_features": 10,
            "pre_trained": False,
            "pre_processor": {
                "class_path": "anomalib.pre_processing.PreProcessor",
                "init_args": {"transform": resize},
            },
        },
        "trainer": {"max_epochs": 1, "limit_train_batches": 4},
    }
    failing = ganomaly("Failing") | {"class_path": "tests.compare.failing.Failing"}
    config = configuration(root / "digits", ganomaly(), padim, failing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUNDS", 2)
        summary = compare(config, root / "results", jobs=2)
    return Compared(root / "results", summary, root / "digits")

# SPDX-License-Identifier: Apache-2.0
"""One finished comparison for all tests, and figures without any training."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ganomaly_plugin.compare import compare, timing
from ganomaly_plugin.compare.grid import read_grid
from ganomaly_plugin.compare.record import Result
from ganomaly_plugin.compare.summary import Summary

TRAINER = {"max_epochs": 3, "limit_train_batches": 2}


def ganomaly(name: str = "GANomaly", **kwargs: Any) -> dict[str, Any]:
    """Configure a small GANomaly."""
    arguments = {"image_size": 32, "input_channels": 1, "n_features": 8, "latent_vec_size": 8} | kwargs
    return {"name": name, "class_path": "ganomaly", "init_args": arguments, "trainer": TRAINER}


def configuration(root: Path, *models: dict[str, Any]) -> dict[str, Any]:
    """Configure a comparison of models on the digits, the eight anomalous, with two seeds."""
    arguments = {"root": str(root), "abnormal_class": {"grid": [8]}, "max_test_images": 60}
    data = {"class_path": "digits", "init_args": arguments}
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
        summary = compare(config | {"openvino": ["FP32"]}, root / "results", jobs=2)
    return Compared(root / "results", summary, root / "digits")


def summarise(
    folder: Path, scores: dict[tuple[str, int, int], np.ndarray], images: np.ndarray | None = None, **config: Any
) -> Summary:
    """Summarise runs that some models finished on digits, from raw scores by model, category and seed.

    The test images are half normal and half anomalous, the same for all runs unless ``images`` names others by seed.
    """
    models = list(dict.fromkeys(model for model, _, _ in scores))
    categories = list(dict.fromkeys(category for _, category, _ in scores))
    section = {
        "model": {"grid": [{"class_path": "ganomaly", "name": model, **config.get(model, {})} for model in models]},
        "data": {"class_path": "digits", "init_args": {"abnormal_class": {"grid": categories}}},
        "seed": {"grid": list(dict.fromkeys(seed for _, _, seed in scores))},
    }
    grid = read_grid(section)
    results = []
    for run in grid.runs:
        values = scores[run.model, int(run.category), run.seed]
        labels = np.repeat([0.0, 1.0], len(values) // 2)
        place = folder / run.path
        place.mkdir(parents=True)
        hashes = np.arange(len(values)) if images is None else images[run.seed]
        np.savez(place / "scores.npz", scores=values, labels=labels, images=hashes.astype(np.uint64))
        record = {
            "metrics": {"image_AUROC": roc_auc_score(labels, values)},
            "epochs": [],
            "data": {"train": "0", "test": "0"},
        }
        results.append(Result(run, place, record))
    return Summary(grid, results)


def separated(distances: list[float], seed: int = 0, n: int = 100) -> list[np.ndarray]:
    """Draw scores of ``n`` images, half of them higher by each of the distances."""
    noise = np.random.default_rng(seed).normal(size=n)
    return [noise + np.repeat([0, distance], n // 2) for distance in distances]

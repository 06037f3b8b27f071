# SPDX-License-Identifier: Apache-2.0
"""anomalib's tiled ensemble with models of this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomalib.models import Padim
from anomalib.pipelines.tiled_ensemble.components import metrics_calculation
from anomalib.pipelines.tiled_ensemble.components.utils import NormalizationStage, helper_functions
from PIL import Image

from ganomaly_plugin import VAE, GANomaly

RUN = """
import sys
from jsonargparse import Namespace
from anomalib.pipelines.tiled_ensemble import EvalTiledEnsemble, TrainTiledEnsemble

config = Namespace(config="config.yaml")
if sys.argv[1] == "train":
    TrainTiledEnsemble().run(config)
EvalTiledEnsemble("results/ganomaly/toy/v0").run(config)
"""


@pytest.fixture
def configuration(tmp_path: Path) -> dict:
    """The configuration of an ensemble of two models, on images with defects in both tiles, in their folder."""
    rng = np.random.default_rng(0)
    for folder, count in (("good", 8), ("more", 6), ("bad", 6), ("mask", 6)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            pixels = rng.integers(90, 110, (32, 64), dtype=np.uint8)
            if folder in {"bad", "mask"}:
                pixels = np.zeros_like(pixels) if folder == "mask" else pixels
                pixels[8:16, 10 + 8 * index :][:, :10] = 255
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    folders = {"normal_dir": "good", "normal_test_dir": "more", "abnormal_dir": "bad", "mask_dir": "mask"}
    splits = {"test_split_mode": "from_dir", "val_split_mode": "same_as_test"}
    batches = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return {
        "seed": 0,
        "accelerator": "cpu",
        "default_root_dir": "results",
        "tiling": {"tile_size": [32, 32], "stride": 32, "image_size": [32, 64]},
        "normalization_stage": "none",
        "thresholding_stage": "image",
        "data": {"class_path": "Folder", "init_args": {"name": "toy", "root": ".", **folders, **splits, **batches}},
        "SeamSmoothing": {"apply": True, "sigma": 2, "width": 0.1},
        "TrainModels": {"model": {}, "trainer": {"max_epochs": 1, "enable_progress_bar": False}},
    }


@pytest.mark.slow
def test_training_merging_and_metrics(configuration: dict, tmp_path: Path) -> None:
    """All stages run, and a second evaluation loads the models of all tiles and finds the same."""
    arguments = {"n_features": 4, "input_channels": 1, "max_features": None}
    configuration["TrainModels"]["model"] = {"class_path": "ganomaly", "init_args": arguments}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration))
    root = tmp_path / "results" / "ganomaly" / "toy" / "v0"
    metrics = []
    for stage in ("train", "evaluate"):
        command = [sys.executable, "-c", RUN, stage]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert "errors" not in done.stdout, (tmp_path / "runs" / "pipeline.log").read_text()
        metrics.append(pd.read_csv(root / "metric_results.csv"))
        (root / "metric_results.csv").unlink()
    assert np.isfinite(metrics[0]).all(axis=None)
    assert {"image_AUROC", "image_AveragePrecision", "pixel_AUROC"} <= set(metrics[0])
    pd.testing.assert_frame_equal(*metrics)
    assert sorted(path.name for path in root.glob("weights/lightning/*.ckpt")) == ["model0_0.ckpt", "model0_1.ckpt"]
    assert json.loads((root / "weights" / "lightning" / "stats.json").read_text())["image_threshold"] > 0
    assert len(list(root.glob("images/**/*.png"))) == 12


@pytest.mark.parametrize("tile_size", [32, [32, 32], (40, 32)])
def test_models_have_the_size_of_tiles(tile_size: int | list[int] | tuple[int, int]) -> None:
    """However it is written; the datamodule resizes, so the model's pre-processor does not."""
    build = helper_functions.get_ensemble_model
    size = (tile_size, tile_size) if isinstance(tile_size, int) else tuple(tile_size)
    for arguments in ({}, {"init_args": {"lr": 0.1}}, {"init_args": {"image_size": list(size)}}):
        model = build({"class_path": "GANomaly", **arguments}, tile_size, NormalizationStage.TILE)
        assert isinstance(model, GANomaly)
        assert model.hparams["image_size"] == size
        assert model.hparams["lr"] == arguments.get("init_args", {}).get("lr", GANomaly().hparams["lr"])
        assert model.pre_processor.transform(torch.ones(1, 3, 40, 50)).shape[-2:] == (40, 50)
        assert model.post_processor.enable_normalization
    assert not build({"class_path": "vae"}, tile_size, NormalizationStage.IMAGE).post_processor.enable_normalization


@pytest.mark.parametrize(
    ("arguments", "tile_size", "message"),
    [
        ({"image_size": 64}, [32, 32], r"image_size is 64, .* \[32, 32\] pixels: leave image_size out"),
        ({}, [10, 10], "each side must be at least 28"),
        ({}, 10, "each side must be at least 28"),
    ],
)
def test_other_sizes_are_refused(arguments: dict, tile_size: int | list[int], message: str) -> None:
    """Before any model of the ensemble trains."""
    with pytest.raises(ValueError, match=message):
        helper_functions.get_ensemble_model(
            {"class_path": "ganomaly_plugin.GANomaly", "init_args": arguments}, tile_size, NormalizationStage.NONE
        )


def test_metrics_take_merged_scores() -> None:
    """The metrics stage asks for a model of 10x10 pixels, and merged predictions have no raw scores."""
    model = metrics_calculation.get_ensemble_model({"class_path": "VAE"}, (10, 10), NormalizationStage.IMAGE)
    assert isinstance(model, VAE)
    fields = {metric.name: list(metric.fields) for metric in model.evaluator.test_metrics}
    assert fields["image_AUROC"] == fields["image_AveragePrecision"] == ["pred_score", "gt_label"]


def test_other_models_are_built_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """By anomalib's function, once for its pre-processor and once for good."""
    built = []

    def build_padim(model_args: dict, **kwargs: object) -> Padim:
        built.append(set(kwargs))
        return Padim(pre_trained=False, **kwargs)

    monkeypatch.setattr(helper_functions, "get_model", build_padim)
    helper_functions.get_ensemble_model({"class_path": "Padim"}, [32, 32], NormalizationStage.TILE)
    assert built == [set(), {"pre_processor", "visualizer"}]

# SPDX-License-Identifier: Apache-2.0
"""Which runs a configuration stands for, and which configurations are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ganomaly_plugin import GANomaly
from ganomaly_plugin.compare.comparison import load
from ganomaly_plugin.compare.grid import Run, read_grid
from ganomaly_plugin.compare.run import build_datamodule, build_model

CONFIGS = Path(__file__).parents[2] / "configs"
GANOMALY_ALONE = {"ablation", "cifar10_small", "digits_ten", "industrial_long", "mnist_small", "run_time"}
"""Grids of GANomaly's figures; the others are side-by-side comparisons."""
SIDE_BY_SIDE = [path for path in sorted((CONFIGS / "compare").glob("*.yaml")) if path.stem not in GANOMALY_ALONE]


def configure(**kwargs: Any) -> dict[str, Any]:
    """Configure two models, one of them in two widths, on two categories and one dataset without any."""
    model = {
        "grid": [
            {"class_path": "ganomaly_plugin.GANomaly", "init_args": {"n_features": {"grid": [8, 16]}}},
            {"class_path": "Padim", "name": "PaDiM", "trainer": {"max_epochs": 3}},
        ]
    }
    data = {
        "grid": [
            {"class_path": "MVTecAD", "init_args": {"category": {"grid": ["bottle", "screw"]}}},
            {"class_path": "digits", "name": "scans"},
        ]
    }
    return {"seed": {"grid": [0, 5]}, "accelerator": "cpu", "model": model, "data": data} | kwargs


def test_every_combination_once() -> None:
    """3 models x 3 categories x 2 seeds, labelled by what their grids vary."""
    grid = read_grid(configure())
    assert grid.models == ["GANomaly n_features=8", "GANomaly n_features=16", "PaDiM"]
    assert grid.reference == "GANomaly n_features=8"
    assert len(grid.runs) == len({run.path for run in grid.runs}) == 18
    assert {(run.dataset, run.category) for run in grid.runs} == {
        ("MVTecAD", "bottle"),
        ("MVTecAD", "screw"),
        ("scans", "all"),
    }
    (run,) = [run for run in grid.runs if run.path == Path("PaDiM/MVTecAD/screw/5")]
    assert run.trainer == {"accelerator": "cpu", "max_epochs": 3}
    assert run.data_config == {"class_path": "MVTecAD", "init_args": {"category": "screw"}}


def test_one_category_and_seed_of_each_dataset_is_timed() -> None:
    """The first, in the formats that the configuration names."""
    timed = [run for run in read_grid(configure(openvino=["FP32", "INT8_PTQ"])).runs if run.openvino]
    assert {(run.dataset, run.category, run.seed) for run in timed} == {
        ("MVTecAD", "bottle", 0),
        ("scans", "all", 0),
    }
    assert {run.openvino for run in timed} == {("FP32", "INT8_PTQ")}


def test_runs_are_written_and_read() -> None:
    """Another process or machine runs the same run."""
    for run in read_grid(configure()).runs:
        assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1]}, "has no seeds: it takes accelerator, data, every_epoch, metrics, model"),
        ({"model": None}, "names no model"),
        ({"model": {"init_args": {}}}, "model of the comparison has no class_path"),
        ({"reference": "PatchCore"}, "'PatchCore', which is none of the models: choose one of GANomaly n_features=8"),
        ({"seed": {"grid": []}}, "The grid seed.grid is empty"),
        ({"model": {"grid": []}}, "The grid model.grid is empty"),
        (
            {"data": {"class_path": "digits", "init_args": {"abnormal_class": {"grid": []}}}},
            "abnormal_class.grid is empty",
        ),
        ({"metrics": ["AUROC"]}, "takes a list of image_AUROC, image_AP"),
        ({"every_epoch": "yes"}, "every_epoch is yes, yes, yes; it takes true or false"),
        ({"openvino": ["INT4"]}, "takes a list of FP32, FP16, INT8, INT8_PTQ"),
        ({"model": {"grid": [{"class_path": "Padim"}, {"class_path": "Padim"}]}}, "Two models are called Padim"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    """The message names what is wrong and what works."""
    with pytest.raises(ValueError, match=message):
        read_grid(configure(**change))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"class_path": "Padum"}, "Padum on digits .all., seed 0: .*Expected a dot import path string: Padum"),
        ({"class_path": "ganomaly", "init_args": {"depth": 3}}, "depth"),
        ({"class_path": "ganomaly", "init_args": {"image_size": 20}}, "each side must be at least 28"),
    ],
)
def test_models_are_built_before_anything_runs(model: dict[str, Any], message: str) -> None:
    """A wrong class or argument ends the command at once, not hours later."""
    with pytest.raises(ValueError, match=message):
        load({"model": model, "data": {"class_path": "digits"}})


@pytest.mark.parametrize("path", SIDE_BY_SIDE, ids=lambda path: path.stem)
def test_shipped_configurations(path: Path) -> None:
    """Each holds GANomaly and the rivals that anomalib has."""
    grid = read_grid(yaml.safe_load(path.read_text())["compare"])
    assert grid.reference == "GANomaly"
    assert {"GANomaly", "anomalib Ganomaly", "Padim", "Patchcore"} <= set(grid.models)


@pytest.mark.parametrize(
    ("name", "n_models", "n_categories", "n_seeds"),
    [("ablation", 9, 3, 1), ("cifar10_small", 2, 5, 3), ("digits_ten", 3, 10, 3), ("industrial_long", 2, 2, 1),
     ("mnist_small", 10, 10, 3)],
)  # fmt: skip
def test_grids_of_ganomaly(name: str, n_models: int, n_categories: int, n_seeds: int) -> None:
    """Every model and every datamodule that needs no files can be built."""
    grid = read_grid(yaml.safe_load((CONFIGS / "compare" / f"{name}.yaml").read_text())["compare"])
    assert grid.reference == "GANomaly"
    assert len(grid.runs) == n_models * n_categories * n_seeds
    for run in {run.model: run for run in grid.runs}.values():
        build_model(run)
        if run.data_config["class_path"] != "class_folder":
            build_datamodule(run)


@pytest.mark.parametrize("name", ["cifar10_small", "mnist_small"])
@pytest.mark.parametrize(("model", "recipe"), [("GANomaly", "default"), ("GANomaly, paper", "paper")])
def test_recipes_are_those_of_the_configurations(name: str, model: str, recipe: str) -> None:
    """The grids repeat the settings of ``configs/default.yaml`` and ``configs/paper.yaml``."""
    grid = read_grid(yaml.safe_load((CONFIGS / "compare" / f"{name}.yaml").read_text())["compare"])
    run = next(run for run in grid.runs if run.model == model)
    settings = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    arguments = settings["model"]["init_args"] | {"input_channels": 1 if name == "mnist_small" else 3}
    expected = GANomaly(**arguments, visualizer=False).hparams
    assert dict(build_model(run).hparams) == dict(expected)
    assert run.trainer["max_epochs"] == settings["trainer"]["max_epochs"]


def test_building_leaves_the_runs_alone() -> None:
    """Nested classes, too, are still plain data afterwards, which another process can read."""
    resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}
    pre_processor = {"class_path": "anomalib.pre_processing.PreProcessor", "init_args": {"transform": resize}}
    model = {"class_path": "Ganomaly", "init_args": {"pre_processor": pre_processor}}
    (run,) = read_grid({"model": model, "data": {"class_path": "digits"}}).runs
    written = run.to_json()
    build_model(run)
    assert run.to_json() == written

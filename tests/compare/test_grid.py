# SPDX-License-Identifier: Apache-2.0
"""Which runs a configuration stands for, and which configurations are refused."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

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


def digits(category: Any) -> dict[str, Any]:
    """Configure the digits."""
    return {"class_path": "digits", "init_args": {"abnormal_class": category}}


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
        ({"model": {"class_path": "Padim", "name": ".."}}, r"The name of a model of the comparison is '\.\.': give it"),
        ({"model": {"class_path": "Padim", "name": ""}}, "The name of a model of the comparison is '': give it text"),
        (
            {"data": {"class_path": "digits", "name": 2024}},
            "The name of a data of the comparison is 2024: give it text",
        ),
        ({"metrics": ["AUROC"]}, "takes a list of image_AUROC, image_AP"),
        ({"every_epoch": "yes"}, "every_epoch is yes, yes, yes; it takes true or false"),
        ({"openvino": ["INT4"]}, "takes a list of FP32, FP16, INT8, INT8_PTQ"),
        ({"model": {"grid": [{"class_path": "Padim"}, {"class_path": "Padim"}]}}, "Two models are called Padim"),
        ({"seed": {"grid": [0, 1, 0]}}, "The seed 0 stands twice in the comparison"),
        ({"seed": {"grid": [0, True]}}, "seed is True; it takes a whole number"),
        ({"seed": {"grid": [0, 0.0]}}, "seed is 0.0; it takes a whole number"),
        (
            {"seed": [0, 1]},
            r"seed is \[0, 1\]; it takes a whole number from 0 to 4294967295, or several in a list under",
        ),
        ({"seed": -1}, "seed is -1; it takes a whole number"),
        ({"seed": {"list": [0, 1]}}, "seed is .*; it takes a whole number"),
        (
            {"data": digits({"grid": [1, 8, 1]})},
            r"Twice in the comparison.*: Padim on digits .1., seed 0; Padim on digits",
        ),
        ({"data": digits({"grid": [8, "8"]})}, "Twice in the comparison"),
        ({"data": digits({"grid": ["a b", "a;b"]})}, r"one folder for the results of both: .*\(a b\).*\(a;b\)"),
        ({"data": digits({"grid": 8})}, "abnormal_class.grid is 8, and no list"),
        ({"data": {"grid": [{"class_path": "digits"}, {"class_path": "digits"}]}}, "Twice in the comparison"),
        ({"model": {"grid": [{"class_path": "Padim"}, {"class_path": "padim"}]}}, "Twice in the comparison"),
        ({"metrics": ["image_AP", "image_AP"]}, "with image_AP twice"),
        ({"openvino": ["FP32", "FP32"]}, "with FP32 twice"),
        (
            {"model": {"class_path": "Padim", "trainers": {"max_epochs": 3}}},
            "The model Padim of the comparison takes no trainers: it takes class_path, every_epoch, init_args, name, ",
        ),
        ({"data": {"class_path": "digits", "init_arg": {}}}, "The data digits of the comparison takes no init_arg"),
        ({"data": {"class_path": "digits", "trainer": {}}}, "The data digits of the comparison takes no trainer"),
        ({"model": {"class_path": "Padim", "trainer": 3}}, "trainer of Padim is 3; it takes names with their values"),
        (
            {"model": {"class_path": "Padim", "tuned_on": [8]}},
            r"tuned_on of Padim is \[8\]; it takes lists of categories",
        ),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    """The message names what is wrong and what works."""
    defaults = {"model": {"class_path": "Padim"}} if "data" in change else {}
    with pytest.raises(ValueError, match=message):
        read_grid(configure(**defaults | change))


def test_empty_sections() -> None:
    """As if they were not there."""
    (run,) = read_grid({"model": {"class_path": "Padim", "init_args": None, "trainer": None}, "data": digits(8)}).runs
    assert run.model_config == {"class_path": "Padim", "init_args": {}}
    assert run.trainer == {"accelerator": "auto"}


def test_timed_only_when_asked_for() -> None:
    """Exports cost time, and packages that not everybody has."""
    assert not any(run.openvino for run in read_grid(configure()).runs)


def test_keys_beside_the_section(tmp_path: Path) -> None:
    """What was to stand below ``compare`` is not left out in silence."""
    file = tmp_path / "compare.yaml"
    section = {"model": {"class_path": "Padim"}, "data": {"class_path": "digits"}}
    file.write_text(yaml.safe_dump({"compare": section, "seed": {"grid": [0, 1]}, "notes": "anything"}))
    with pytest.raises(ValueError, match="has seed beside the section 'compare': indent it below that key"):
        load(file)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epoch": 3}, "trainer has no max_epoch: it takes accelerator, "),
        ({"callbacks": []}, "trainer has no callbacks"),
        ({"max_epochs": "ten"}, "digits .*: the trainer refuses {'max_epochs': 'ten'}: "),
        ({"max_epochs": -5}, "the trainer refuses {'max_epochs': -5}: "),
        ({"max_time": "soon"}, "the trainer refuses {'max_time': 'soon'}: "),
        ({"limit_train_batches": 1.5}, "the trainer refuses {'limit_train_batches': 1.5}: "),
    ],
)
def test_wrong_arguments_of_the_trainer(trainer: dict[str, Any], message: str) -> None:
    """Refused before anything trains."""
    with pytest.raises(ValueError, match=message):
        load({"model": {"class_path": "Padim", "trainer": trainer}, "data": {"class_path": "digits"}})


def test_categories_with_the_same_images(tmp_path: Path) -> None:
    """One class under two names would count twice in the mean."""
    data = {"class_path": "class_folder", "init_args": {"root": str(tmp_path), "abnormal_class": {"grid": ["car", 1]}}}
    for part in ("train", "test"):
        for name in ("boat", "car"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (32, 32), number).save(tmp_path / part / name / f"{number}.png")
    with pytest.warns(
        UserWarning, match="class_folder has the same images in its categories (1 and car|car and 1): means"
    ):
        load({"model": {"class_path": "Ganomaly", "trainer": {"max_epochs": 1}}, "data": data})


def test_trainings_that_nothing_bounds() -> None:
    """Lightning would train 1,000 epochs; PaDiM trains one whatever the trainer says."""
    config: dict[str, Any] = {"data": {"class_path": "digits"}, "model": {"class_path": "Ganomaly"}}
    with pytest.warns(UserWarning, match="Ganomaly has no max_epochs or max_steps or max_time in its trainer section"):
        load(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*max_epochs")
        load(config | {"model": {"class_path": "Padim", "init_args": {"pre_trained": False}}})
        load(config | {"model": config["model"] | {"trainer": {"max_steps": 3}}})


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
    """Each holds GANomaly, on pixels or on features, and the rivals that anomalib has."""
    grid = read_grid(yaml.safe_load(path.read_text())["compare"])
    assert grid.reference == ("FeatureGANomaly" if path.stem == "features" else "GANomaly")
    rivals = {"Padim", "Patchcore"} if path.stem == "features" else {"anomalib Ganomaly", "Padim", "Patchcore"}
    assert {grid.reference, *rivals} <= set(grid.models)


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

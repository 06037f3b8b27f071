# SPDX-License-Identifier: Apache-2.0
"""The plugin in the stock anomalib: look-ups by name, the command line, and what happens when things are broken."""

import csv
import os
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ClassVar

import anomalib.models
import pytest
import yaml
from anomalib import LearningType
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import get_datamodule
from anomalib.models import AnomalibModule, UnknownModelError, get_model, list_models

import ganomaly_plugin

ROOT = Path(__file__).parents[1]


def run_python(code: str, folder: Path = ROOT.parent, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with what lies in ``folder`` before all that is installed."""
    command, variables = [sys.executable, "-c", code], os.environ | environment
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


def run_anomalib(
    arguments: Sequence[str], folder: Path = ROOT.parent, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the stock command."""
    command = Path(sys.executable).with_name("anomalib")
    return subprocess.run(
        [str(command), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What ``anomalib train --print_config`` makes of arguments, in this process, where the hook is on as well."""
    with pytest.raises(SystemExit) as exit_:
        AnomalibCLI(["train", *arguments, "--print_config"])
    captured = capsys.readouterr()
    assert exit_.value.code == 0, captured.err
    return yaml.safe_load(captured.out)


@pytest.mark.filterwarnings("error::UserWarning")
def test_lookups_by_name() -> None:
    """Every way of anomalib's to name a model or a datamodule finds ours, and its own stay its own."""
    path = {"class_path": "ganomaly_plugin.GANomaly"}
    for name in ("ganomaly", "GANomaly", {"class_path": "ganomaly"}, {"class_path": "GANomaly"}, path):
        assert type(get_model(name)) is ganomaly_plugin.GANomaly, name
    for name in ("Ganomaly", {"class_path": "Ganomaly"}, {"class_path": "anomalib.models.Ganomaly"}):
        assert type(get_model(name)) is anomalib.models.Ganomaly, name
    assert anomalib.models.Ganomaly.__module__.startswith("anomalib.models.image.ganomaly")
    assert type(get_model("padim", pre_trained=False)) is anomalib.models.Padim
    for name in ("digits", "Digits", "ganomaly_plugin.Digits"):
        assert type(get_datamodule({"class_path": name})) is ganomaly_plugin.Digits, name


@pytest.mark.parametrize(
    ("case", "ours", "stock"),
    [
        ("snake", {"ganomaly", "f_anogan", "ae"}, {"ganomaly", "padim", "efficient_ad"}),
        ("pascal", {"GANomaly", "FAnoGAN", "Autoencoder"}, {"Ganomaly", "Padim", "EfficientAd"}),
        ("title", {"Ga Nomaly", "F Ano Gan", "Autoencoder"}, {"Ganomaly", "Padim", "Efficient Ad"}),
    ],
)
def test_list_of_models(case: str, ours: set[str], stock: set[str]) -> None:
    """In each spelling of anomalib's, by which the class is found again; the abstract base of ours is no model."""
    names = list_models(case=case)
    assert ours | stock <= names
    assert not {name for name in names if "detector" in name.lower()}
    with pytest.raises(UnknownModelError, match=r"no model 'DetectorModule': choose one of .*\bganomaly\b"):
        get_model("DetectorModule")


@pytest.mark.parametrize("entry", entry_points(group="anomalib.models"), ids=lambda entry: entry.name)
def test_listed_names_find_their_model(entry: EntryPoint) -> None:
    """The table's name is what is listed, and it is found in capitals too."""
    assert entry.name in list_models()
    for name in (entry.name, entry.name.upper(), entry.load().__name__):
        assert anomalib.models._get_model_class_by_name(name) is entry.load(), name


def test_models_at_any_depth() -> None:
    """anomalib itself sees only direct subclasses of its base, abstract ones included."""

    class Unfinished(AnomalibModule):
        @abstractmethod
        def finish(self) -> None: ...

    class RemoteModel(Unfinished):
        learning_type = LearningType.ONE_CLASS
        trainer_arguments: ClassVar = {}

        def finish(self) -> None: ...

    assert {"RemoteModel"} == {"RemoteModel", "Unfinished"} & list_models(case="pascal")
    for name in ("RemoteModel", "remote_model", "REMOTEMODEL"):
        assert type(get_model(name)) is RemoteModel
    with pytest.raises(UnknownModelError):
        get_model("Unfinished")


@pytest.mark.parametrize(("group", "kind"), [("anomalib.models", "models"), ("anomalib.data", "data")])
def test_names_follow_from_the_entry_points(group: str, kind: str) -> None:
    """A class is defined in the module that its alias names, and is public under its own name."""
    entries = [entry for entry in entry_points(group=group) if entry.module == "ganomaly_plugin"]
    assert entries
    for entry in entries:
        loaded = entry.load()
        assert f"{loaded.__module__}.".startswith(f"ganomaly_plugin.{kind}.{entry.name}.")
        assert loaded.__name__ == entry.attr
        assert entry.attr in dir(ganomaly_plugin)
    with pytest.raises(AttributeError, match="has no attribute 'Lost'"):
        ganomaly_plugin.Lost  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ganomaly_plugin.models.ganomaly", "ganomaly_plugin.data.digits"])
def test_order_of_imports_does_not_matter(first: str) -> None:
    """Whether anomalib or the plugin is imported first, both are whole, and nothing is warned about.

    The package loads the module of a class when it is asked for the class.
    """
    name = "Digits" if "data" in first else "GANomaly"
    result = run_python(f"""
import warnings
warnings.simplefilter("error", UserWarning)
from ganomaly_plugin import {name}
assert {name}.__module__.startswith("{first}")
import anomalib.models, anomalib.data
assert anomalib.data.Digits and anomalib.models.GANomaly
""")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "ganomaly"], "ganomaly_plugin.GANomaly"),
        (["--model=ganomaly"], "ganomaly_plugin.GANomaly"),
        (["--model", "GANomaly"], "ganomaly_plugin.GANomaly"),
        (["--model", "ganomaly_plugin.GANomaly"], "ganomaly_plugin.GANomaly"),
        (["--model", "Ganomaly"], "anomalib.models.Ganomaly"),
    ],
    ids=lambda value: "".join(value),
)
def test_command_line_names(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    """Model and datamodule by alias, class name and path; arguments reach them."""
    data = "digits" if expected.startswith("ganomaly") else "Digits"
    config = printed_config(
        capsys, *arguments, "--model.latent_vec_size", "50", "--data", data, "--data.abnormal_class", "3"
    )
    assert config["model"]["class_path"] == expected
    assert config["model"]["init_args"]["latent_vec_size"] == 50
    assert config["data"]["class_path"] == "ganomaly_plugin.Digits"
    assert config["data"]["init_args"]["abnormal_class"] == "3"


@pytest.mark.parametrize(
    "model",
    ["ganomaly", {"class_path": "ganomaly"}, {"class_path": "ganomaly_plugin.GANomaly", "init_args": {"wcon": 40}}],
    ids=str,
)
def test_yaml_names(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: object) -> None:
    """The same names serve in YAML."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": "digits"}))
    config = printed_config(capsys, "--config", str(path))
    assert config["model"]["class_path"] == "ganomaly_plugin.GANomaly"
    assert config["model"]["init_args"]["wcon"] == (40 if "init_args" in model else 50)
    assert config["data"]["class_path"] == "ganomaly_plugin.Digits"


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_shipped_configs_parse(capsys: pytest.CaptureFixture[str], config: str) -> None:
    """Every YAML that is shipped names arguments that exist."""
    parsed = printed_config(capsys, "--config", str(ROOT / "configs" / f"{config}.yaml"))
    name = "FeatureGANomaly" if config in {"feature_ganomaly", "my_folder"} else "GANomaly"
    assert parsed["model"]["class_path"] == f"ganomaly_plugin.{name}"


@pytest.mark.parametrize("in_yaml", [False, True], ids=["options", "yaml"])
@pytest.mark.parametrize("entry", entry_points(group="anomalib.data"), ids=lambda entry: entry.name)
def test_datamodule_names(capsys: pytest.CaptureFixture[str], tmp_path: Path, entry: EntryPoint, in_yaml: bool) -> None:
    """Each datamodule by its alias, with arguments of its own and of what it is built on."""
    arguments = {"root": "somewhere", "abnormal_class": "car", "max_train_images": 50, "max_test_images": 20}
    arguments |= {"val_split_mode": "from_test"}
    given = [
        "--data",
        entry.name,
        *(part for key, value in arguments.items() for part in (f"--data.{key}", str(value))),
    ]
    if in_yaml:
        content = {"data": {"class_path": entry.name, "init_args": arguments}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        given = ["--config", str(tmp_path / "config.yaml")]
    config = printed_config(capsys, "--model", "ganomaly", *given)
    assert config["data"]["class_path"] == entry.value.replace(":", ".")
    assert config["data"]["init_args"] | arguments == config["data"]["init_args"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fashion_mnist", {"one_vs_rest": "normal", "normal_class": "bag", "max_test_images": None}),
        ("patches", {"root": "somewhere", "stride": 16, "anomalous_fraction": 0.5}),
    ],
)
def test_arguments_of_one_datamodule(
    capsys: pytest.CaptureFixture[str], name: str, arguments: dict[str, object]
) -> None:
    """What not all sets have, or what is unset."""
    options = [part for key, value in arguments.items() for part in (f"--data.{key}", yaml.safe_dump(value).split()[0])]
    config = printed_config(capsys, "--model", "ganomaly", "--data", name, *options)
    assert config["data"]["init_args"] | arguments == config["data"]["init_args"]


def test_help_of_an_alias(capsys: pytest.CaptureFixture[str]) -> None:
    """The alias explains itself."""
    with pytest.raises(SystemExit):
        AnomalibCLI(["train", "--model.help", "ganomaly"])
    shown = capsys.readouterr().out
    assert "latent_vec_size" in shown  # After --model. or --model.init_args., as the version of jsonargparse has it.
    assert "feature_matching" in shown


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_every_subcommand_knows_the_names(capsys: pytest.CaptureFixture[str], subcommand: str) -> None:
    """Not only ``train``; even ``predict``, which takes paths as data, sees a datamodule."""
    with pytest.raises(SystemExit):
        AnomalibCLI([subcommand, "--model", "ganomaly", "--data", "digits", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == "ganomaly_plugin.GANomaly"
    assert config["data"]["class_path"] == "ganomaly_plugin.Digits"


def test_export_knows_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes no data."""
    with pytest.raises(SystemExit):
        AnomalibCLI(["export", "--model", "ganomaly", "--export_type", "onnx", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] == "ganomaly_plugin.GANomaly"


@pytest.mark.parametrize("name", sorted(entry.name for entry in entry_points(group="anomalib.models")))
def test_every_model_trains_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A few batches of every model that the package registers, from the command line to the test's figures."""
    monkeypatch.chdir(tmp_path)
    limits = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 1, "limit_test_batches": 2}
    trainer = [part for key, value in limits.items() for part in (f"--trainer.{key}", str(value))]
    model = ["--model", name, "--model.image_size", "32", "--model.n_features", "4", "--model.visualizer", "false"]
    own = {"anogan": ["--model.steps", "3"], "feature_ganomaly": ["--model.pre_trained", "false"]}.get(name, [])
    command = AnomalibCLI(["train", *model, *own, "--data", "digits", *trainer, "--trainer.accelerator", "cpu"])
    assert type(command.model).__module__.startswith(f"ganomaly_plugin.models.{name}.")
    assert 0 <= command.engine.trainer.callback_metrics["image_F1Score"] <= 1
    assert list(tmp_path.rglob("model.ckpt"))


@pytest.mark.slow
def test_stock_benchmark_runs_ours(tmp_path: Path) -> None:
    """The console script is anomalib's: its benchmark trains our model on our datamodule and writes its table."""
    arguments = {"image_size": 32, "n_features": 4, "visualizer": False}
    config = {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 42,
            "model": {"class_path": "ganomaly", "init_args": arguments},
            "data": {"class_path": "digits", "init_args": {"abnormal_class": {"grid": [3]}, "max_test_images": 10}},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = run_anomalib(["benchmark", "--config", "config.yaml"], tmp_path, PL_TRAINER_MAX_EPOCHS="1")
    (table,) = tmp_path.glob("runs/benchmark/*/results.csv")
    (row,) = csv.DictReader(table.open())
    assert row["model.class_path"] == "ganomaly", result.stderr
    assert 0 <= float(row["image_AUROC"]) <= 1


@pytest.mark.slow
def test_stock_command_fails_without_the_hook() -> None:
    """With the hook off, the alias is unknown as in stock anomalib, but the class path still works."""
    code = """
from anomalib.cli.cli import AnomalibCLI
for model, status in (("ganomaly", 2), ("ganomaly_plugin.GANomaly", 0)):
    try:
        AnomalibCLI(["train", "--model", model, "--print_config"])
    except SystemExit as ended:
        assert ended.code == status, ended.code
    else:
        raise AssertionError
"""
    result = run_python(code, GANOMALY_PLUGIN_DISABLE="1")
    assert result.returncode == 0, result.stderr
    assert "Expected a dot import path string: ganomaly" in result.stderr
    assert yaml.safe_load(result.stdout)["model"]["class_path"] == "ganomaly_plugin.GANomaly"


@pytest.mark.slow
def test_python_m_is_the_stock_command(tmp_path: Path) -> None:
    """With the same names and subcommands where the start-up hook is off, in the processes of a comparison too."""
    small = {"image_size": 32, "n_features": 2, "latent_vec_size": 2}
    short = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1}
    options = [f"--model.{name}={value}" for name, value in small.items()]
    options += [f"--trainer.{name}={value}" for name, value in short.items()]
    train = ["train", "--model", "ganomaly", "--data", "digits", *options]
    train += ["--model.visualizer=false", "--trainer.accelerator=cpu"]
    model = {"class_path": "ganomaly", "init_args": small, "trainer": {"max_epochs": 1, "limit_train_batches": 1}}
    data = {"class_path": "digits", "init_args": {"abnormal_class": 3, "max_test_images": 10}}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"compare": {"model": model, "data": data}}))
    # As python -m does, but importing anomalib once for both.
    code = f"""
import runpy, sys
for arguments in ({train}, ["compare", "--config", "compare.yaml", "--output", "results"]):
    sys.argv[1:] = arguments
    runpy.run_module("ganomaly_plugin", run_name="__main__", alter_sys=True)
"""
    result = run_python(code, tmp_path, GANOMALY_PLUGIN_DISABLE="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.rglob("GANomaly/Digits/**/model.ckpt"))
    assert list(tmp_path.glob("results/runs/*/*/*/*/result.json"))
    assert (tmp_path / "results" / "report.html").is_file()


def test_interpreters_without_anomalib_pay_nothing() -> None:
    """Start-up imports no module of ours, and the package itself neither PyTorch nor anomalib."""
    started = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "pass"], capture_output=True, text=True, check=True
    )
    assert "ganomaly_plugin" not in started.stderr
    result = run_python("""
import sys
assert "AwaitAnomalib" in [type(finder).__name__ for finder in sys.meta_path]
import ganomaly_plugin
assert not {"torch", "anomalib", "numpy"} & set(sys.modules)
assert {"GANomaly", "Digits", "FullImages"} <= set(dir(ganomaly_plugin))
assert not {"torch", "anomalib", "numpy"} & set(sys.modules)
""")
    assert result.returncode == 0, result.stderr


def test_missing_package_is_named(tmp_path: Path) -> None:
    """Where only the hook is left of the plugin, Python and anomalib start, and the remedy is named."""
    (tmp_path / "ganomaly_plugin").mkdir()
    (tmp_path / "ganomaly_plugin" / "__init__.py").write_text("")
    result = run_python("import anomalib; print('started')", tmp_path)
    assert result.stdout.strip() == "started"
    assert "ganomaly-plugin is not fully installed" in result.stderr
    assert "reinstall or uninstall it with pip" in result.stderr


@pytest.mark.slow
def test_broken_package_is_named(tmp_path: Path) -> None:
    """Where the plugin's own code fails, anomalib imports without it, and the reason is named."""
    shutil.copytree(ROOT / "ganomaly_plugin", tmp_path / "ganomaly_plugin")
    (tmp_path / "ganomaly_plugin" / "registration.py").write_text("raise RuntimeError('broken on purpose')\n")
    result = run_python("import anomalib.models; print('started')", tmp_path)
    assert result.stdout.strip() == "started"
    assert "could not register anomalib.models: RuntimeError('broken on purpose')" in result.stderr


@pytest.mark.slow
def test_broken_model_is_named(tmp_path: Path) -> None:
    """Where one class fails to load, the others are registered, and the entry is named."""
    shutil.copytree(ROOT / "ganomaly_plugin", tmp_path / "ganomaly_plugin")
    (tmp_path / "ganomaly_plugin" / "models" / "ganomaly" / "__init__.py").write_text("import no_such_module\n")
    result = run_python("import anomalib.data, anomalib.models; print(anomalib.data.Digits.__name__)", tmp_path)
    assert result.stdout.strip() == "Digits"
    assert "'ganomaly' (ganomaly_plugin:GANomaly) is not available in anomalib.models" in result.stderr

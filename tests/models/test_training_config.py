# SPDX-License-Identifier: Apache-2.0
"""The configuration that a training writes, and what it says of optimisers."""

from pathlib import Path

import pytest
from anomalib.cli.cli import AnomalibCLI

SMALL = ["--model", "ganomaly", "--model.image_size", "32", "--model.n_features", "4", "--model.visualizer", "false"]
LIMITS = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 1, "limit_test_batches": 2}
LIMITS |= {"limit_predict_batches": 1}


def run(subcommand: str, *arguments: str) -> AnomalibCLI:
    """Run the stock command on some digits."""
    limits = [part for key, value in LIMITS.items() for part in (f"--trainer.{key}", str(value))]
    return AnomalibCLI([subcommand, *arguments, *limits, "--trainer.accelerator", "cpu"])


@pytest.mark.parametrize("training", ["train", "fit"])
def test_every_subcommand_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: str) -> None:
    """The file that lies beside the checkpoint builds the model and the data, and stays the training's."""
    monkeypatch.chdir(tmp_path)
    run(training, *SMALL, "--data", "digits", "--data.abnormal_class", "3")
    (checkpoint,), (config,) = tmp_path.rglob("model.ckpt"), tmp_path.rglob("config.yaml")
    written = config.read_text()
    given = ["--config", str(config), "--ckpt_path", str(checkpoint)]
    for subcommand in ("test", "validate", "predict"):
        command = run(subcommand, *given)
        assert command.model.hparams["n_features"] == 4
        assert command.datamodule.category == "abnormal-3"
    run("predict", *given, "--data", "datasets/Digits/3")
    run("export", *given, "--export_type", "torch", "--export_root", "exported")
    assert (tmp_path / "exported/weights/torch/model.pt").is_file()
    assert config.read_text() == written
    run("fit", "--config", str(config))


@pytest.mark.parametrize("subcommand", ["train", "fit"])
@pytest.mark.parametrize(
    "arguments",
    [["--optimizer", "SGD", "--optimizer.lr", "0.01"], ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"]],
    ids=lambda arguments: arguments[0].removeprefix("--"),
)
def test_other_optimisers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subcommand: str, arguments: list[str]
) -> None:
    """The command line takes the options, and makes nothing of them."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{arguments[0]} would have no effect: the model has its own Adam"):
        run(subcommand, *SMALL, "--data", "digits", *arguments)

# SPDX-License-Identifier: Apache-2.0
"""The files for OpenVINO Model Server, against the schema that its documentation gives; the server is not run."""

import json
from pathlib import Path

import pytest

from ganomaly_plugin.edge import Detector
from ganomaly_plugin.edge.command import main

from .conftest import Trained

MODEL_OPTIONS = {
    "name": str,
    "base_path": str,
    "batch_size": int | str,
    "model_version_policy": dict,
    "shape": dict | str,
    "nireq": int,
    "target_device": str,
    "plugin_config": dict,
    "stateful": bool,
}
"""What a model's configuration may hold; the first two it must hold."""


def test_files(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder for each version of each model, and a configuration that points there."""
    folder = tmp_path / "server"
    assert main(["model-server", str(trained.xml), "--output", str(folder), "--name", "digits"]) == 0
    assert f"ovms --config_path {folder / 'config.json'}" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() == {"model_config_list"}
    (entry,) = config["model_config_list"]
    assert entry.keys() == {"config"}
    options = entry["config"]
    assert options.keys() >= {"name", "base_path"}
    assert all(isinstance(value, MODEL_OPTIONS[name]) for name, value in options.items())
    assert options["name"] == "digits"
    (version,) = (folder / options["base_path"]).iterdir()
    assert int(version.name) > 0
    served = Detector(version / "model.xml")
    assert served.predict(trained.paths[0]).score == Detector(trained.xml).predict(trained.paths[0]).score


def test_nothing_is_overwritten(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds something, and names that lead elsewhere, are refused."""
    (tmp_path / "mine.txt").touch()
    command = ["model-server", str(trained.xml), "--output", str(tmp_path)]
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    for name in ("..", "a/b", ""):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--name", name])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine.txt"]

# SPDX-License-Identifier: Apache-2.0
"""Which class a name or number means, whatever YAML made of it."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from anomalib.data import AnomalibDataModule
from jsonargparse import ArgumentParser
from PIL import Image

from ganomaly_plugin import ClassFolder
from ganomaly_plugin.data.class_names import find_class

NAMES = ["01", "02", "07", "08", "011", "1e3", "1.5", "yes", "no", "2024-01-31", "null", "12:30", "0x1F", ".5", "Car"]
"""Names that YAML turns into something else, and one that it does not."""


def make_folders(root: Path, *names: str) -> Path:
    """Write four images of each class and split."""
    for folder in (root / split / name for split in ("train", "test") for name in names):
        folder.mkdir(parents=True)
        for index in range(4):
            Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_text_as_typed(name: str) -> None:
    """Text is that name and no other, and so is the same text in the quotes that a shell or YAML leaves."""
    for text in (name, f"'{name}'", f'"{name}"'):
        assert NAMES[find_class("abnormal_class", text, NAMES, {})] == name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "null"])
def test_what_yaml_makes_of_a_name(name: str) -> None:
    """A value is the name that was read as it."""
    assert NAMES[find_class("abnormal_class", yaml.safe_load(name), NAMES, {})] == name


@pytest.mark.parametrize(
    ("names", "value", "found"),
    [
        (["01", "02", "03"], 1, "01"),
        (["01", "02", "03"], "1", "01"),
        (["07", "08", "09", "10"], 8, "08"),
        (["1", "2", "3"], 1, "1"),
        (["bad", "good"], 1, "good"),
        (["bad", "good"], "1", "good"),
        (["bad", "good"], np.int64(1), "good"),
        (["bad", "Good"], "gOOD", "Good"),
        (["on", "off"], False, "off"),
        (["2024-01-30", "2024-01-31"], date(2024, 1, 31), "2024-01-31"),
        (["1e3", "bad"], 1000.0, "1e3"),
        (["1", "1.0"], 1.0, "1.0"),
        (["Cat", "cat"], "cat", "cat"),
        (["plane", "car"], "automobile", "car"),
        (["bad", "good"], None, "bad"),
    ],
)
def test_names_come_before_positions(names: list[str], value: Any, found: str) -> None:
    """A number is a position only where it is no name."""
    assert names[find_class("abnormal_class", value, names, {"automobile": "car"})] == found


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (["1", "01"], 1, "is 1, which may mean the class '1' or '01': write the name in two pairs of quotes"),
        (["yes", "on", "off"], True, "is True, which may mean the class 'yes' or 'on'"),
        (["8", "010"], 8, "may mean the class '8' or '010'"),
        (["Cat", "cat"], "CAT", "may mean the class 'Cat' or 'cat'"),
        (["bad", "null"], None, "is None or not given, which may mean the class 'null'"),
        (["bad", "good"], 2, "is 2, but must be one of bad, good, or its number from 0"),
        (["bad", "good"], -1, "is -1, but must be one of"),
        (["bad", "good"], True, "is True, but must be one of"),
        (["bad", "good"], 1.0, "is 1.0, but must be one of"),
        (["8", "9"], "010", "is '010', but must be one of"),
    ],
)
def test_doubt_is_refused(names: list[str], value: Any, message: str) -> None:
    """The message names the value and the classes."""
    with pytest.raises(ValueError, match=message):
        find_class("abnormal_class", value, names, {})


@pytest.mark.parametrize("in_yaml", [False, True], ids=["options", "yaml"])
@pytest.mark.parametrize("written", ["01", "'01'", "02", "yes", "1e3", "2024-01-31", "0x1F", "\"'null'\""])
def test_from_command_line_and_yaml(tmp_path: Path, written: str, in_yaml: bool) -> None:
    """The class whose name was written, quoted or not, and the same from the configuration that is printed."""
    root = make_folders(tmp_path / "set", *NAMES)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    parser.add_argument("--config", action="config")
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{class_path: class_folder, init_args: {{root: {root}, abnormal_class: {written}}}}}")
    options = ["--data", "class_folder", "--data.root", str(root), f"--data.abnormal_class={written.strip(chr(34))}"]
    parsed = parser.parse_args(["--config", str(path)] if in_yaml else options)
    name = written.strip("'\"")
    for config in (parsed, parser.parse_string(parser.dump(parsed))):
        assert parser.instantiate_classes(config).data.category == f"abnormal-{name}"


def test_hidden_folders_and_files_are_left_out(tmp_path: Path) -> None:
    """What notebooks and file managers leave behind is no class and no image."""
    make_folders(tmp_path, "bad", "good", ".ipynb_checkpoints")
    for split in ("train", "test"):
        (tmp_path / split / "good" / "._0.png").write_bytes(b"no image")
        (tmp_path / split / "good" / ".ipynb_checkpoints").mkdir()
    datamodule: Any = ClassFolder(tmp_path, abnormal_class="bad", val_split_mode="none")
    datamodule.setup()
    assert datamodule.class_names == ["bad", "good"]
    paths = [*datamodule.train_data.samples.image_path, *datamodule.test_data.samples.image_path]
    assert len(paths) == 16
    assert not [path for path in paths if "/." in path]


def test_only_hidden_files_are_no_images(tmp_path: Path) -> None:
    """A folder of nothing else is refused."""
    make_folders(tmp_path, "bad", "good")
    for path in (tmp_path / "test" / "good").iterdir():
        path.rename(path.with_name(f"._{path.name}"))
    with pytest.raises(FileNotFoundError, match=r"test/good' holds no image"):
        ClassFolder(tmp_path).setup()

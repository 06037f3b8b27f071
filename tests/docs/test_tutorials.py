# SPDX-License-Identifier: Apache-2.0
"""The blocks of the tutorials that are marked as run, one after the other, in a folder of a user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .pages import BLOCKS, ROOT, Block

pytestmark = pytest.mark.slow

LINE = ("tutorials/own_images.md", "tutorials/deploy.md", "tutorials/calibrate_and_watch.md")
"""Pages that go on from each other."""
COMPARE = ("tutorials/compare.md",)
PYTHON = ("how_to/backbone.md", "how_to/new_model.md")
"""Pages that are Python alone."""


def of_pages(*pages: str) -> list[Block]:
    """Return the marked blocks of some pages."""
    return [block for page in pages for block in BLOCKS if block.page == ROOT / "docs" / page and block.mark]


def test_every_marked_block_is_run() -> None:
    """No page is left out."""
    chosen = of_pages(*LINE, *COMPARE, *PYTHON)
    assert sorted(map(str, chosen)) == sorted(str(block) for block in BLOCKS if block.mark)


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later blocks of a page use the names of earlier ones."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "my_module"}
    for block in of_pages(page):
        exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.parametrize("pages", [LINE, COMPARE], ids=["line", "compare"])
def test_commands_run(pages: tuple[str, ...], tmp_path: Path) -> None:
    """As they are written, but for the configuration, which trains two epochs of small images without a download."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    file = tmp_path / "configs" / "my_folder.yaml"
    config = yaml.safe_load(file.read_text())
    config["trainer"] |= {"max_epochs": 2, "accelerator": "cpu"}
    config["model"]["init_args"] |= {"image_size": 64, "pre_trained": False}
    file.write_text(yaml.safe_dump(config))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shells = {"bash": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}
    for block in of_pages(*pages):
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
            continue
        command = [*shells[block.language], block.text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    if pages == LINE:
        scores = (tmp_path / "scores.csv").read_text().splitlines()
        assert len(scores) == 1 + len(list((tmp_path / "parts" / "bad").iterdir()))
        assert (tmp_path / "line.png").is_file()
        assert (tmp_path / "line_from_python.xml").is_file()
        assert (tmp_path / "server" / "parts" / "1" / "model.xml").is_file()

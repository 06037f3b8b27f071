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

SEQUENCES = {
    "line": ["tutorials/own_images.md", "tutorials/deploy.md", "tutorials/calibrate_and_watch.md"],
    "compare": ["tutorials/compare.md"],
    "backbone": ["how_to/backbone.md"],
    "new_model": ["how_to/new_model.md"],
}
"""Pages whose blocks go on from each other."""


def of_pages(pages: list[str]) -> list[Block]:
    """Return the marked blocks of some pages."""
    return [block for page in pages for block in BLOCKS if block.page == ROOT / "docs" / page and block.mark]


def test_every_marked_block_is_run() -> None:
    """No page is left out."""
    chosen = [block for pages in SEQUENCES.values() for block in of_pages(pages)]
    assert sorted(map(str, chosen)) == sorted(str(block) for block in BLOCKS if block.mark)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_blocks_run(sequence: str, tmp_path: Path) -> None:
    """As they are written, but for the configuration, which trains two epochs of small networks."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    file = tmp_path / "configs" / "my_folder.yaml"
    config = yaml.safe_load(file.read_text())
    config["trainer"] |= {"max_epochs": 2, "accelerator": "cpu"}
    file.write_text(yaml.safe_dump(config))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    python: list[str] = []
    for block in of_pages(SEQUENCES[sequence]):
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
            continue
        if block.language == "python":
            python.append(block.text)  # Later blocks of a page use the names of earlier ones.
            command = [sys.executable, "-c", "\n".join(python if sequence == "new_model" else [block.text])]
        else:
            command = ["bash", "-e", "-c", block.text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    if sequence == "line":
        scores = (tmp_path / "scores.csv").read_text().splitlines()
        assert len(scores) == 1 + len(list((tmp_path / "parts" / "bad").iterdir()))
        assert (tmp_path / "line.png").is_file()
        assert (tmp_path / "line_from_python.xml").is_file()
        assert (tmp_path / "server" / "parts" / "1" / "model.xml").is_file()

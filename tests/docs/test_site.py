# SPDX-License-Identifier: Apache-2.0
"""The site of the documentation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT

pytestmark = pytest.mark.slow


def test_builds_without_warning(tmp_path: Path) -> None:
    """Strictly, so that every link and every name is found, with the help of commands and with names in docstrings."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: ganomaly-edge predict" in (tmp_path / "reference" / "commands.html").read_text()
    assert "usage: anomalib compare" in (tmp_path / "reference" / "commands.html").read_text()
    reference = (tmp_path / "reference" / "python.html").read_text()
    assert "image_size" in reference
    assert re.findall(r":\w+:<code>", reference) == []
    assert not re.findall(r'(?:src|href)="http[^"]*\.(?:css|js|woff2?)', reference)  # It opens without a network.

# SPDX-License-Identifier: Apache-2.0
"""Threads for a small machine, and real data that lies outside the repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by GANOMALY_DATA; tests that need it are skipped without."""
    root = Path(os.environ.get("GANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real images are not here: {root} is no folder, and GANOMALY_DATA does not name one")
    return root

# SPDX-License-Identifier: Apache-2.0
"""How tests share the machine, and real data that lies outside the repository."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # One thread each, before PyTorch starts its own, or the workers fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ONE_WORKER = {"compare", "edge"}
"""Folders whose tests share what takes long to make."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares fixtures: some folders, otherwise each class and the functions of each module."""
    for item in items:
        folder = item.path.parent.name
        group = folder if folder in ONE_WORKER else item.nodeid.rpartition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by GANOMALY_DATA; tests that need it are skipped without."""
    root = Path(os.environ.get("GANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real images are not here: {root} is no folder, and GANOMALY_DATA does not name one")
    return root

# SPDX-License-Identifier: Apache-2.0
"""How tests share the machine, and real data that lies outside the repository."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if "PYTEST_XDIST_WORKER" in os.environ:  # One thread each, before PyTorch starts its own, or the workers fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ONE_WORKER = {"compare", "edge"}
"""Folders whose tests share what takes long to make."""


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist's own is not typed
    """Keeps together what shares fixtures: some folders, otherwise each class and the functions of each module."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """Return what is kept together with a test."""
    folder, _, name = nodeid.removeprefix("tests/").partition("/")
    return folder if name and folder in ONE_WORKER else nodeid.rpartition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Tell pytest-xdist how to share the tests out: in the order in which they were collected."""
    config.option.loadscopereorder = False  # By the number of tests, that is.
    return Scheduling(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """Run one worker more than there are cores, since some tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # Before ``-m`` selects.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need real data, and begin with what takes longest, so that the workers end together."""
    seconds: Counter[str] = Counter()
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        seconds[scope_of(item.nodeid)] += 10 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -seconds[scope_of(item.nodeid)])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by GANOMALY_DATA; tests that need it are skipped without."""
    root = Path(os.environ.get("GANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real images are not here: {root} is no folder, and GANOMALY_DATA does not name one")
    return root

# SPDX-License-Identifier: Apache-2.0
"""The documentation's script for Ray Data, on a real cluster of this machine."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ganomaly_plugin.edge import Detector
from ganomaly_plugin.edge.image_list import find_images
from tests.docs.pages import ROOT, find_blocks

from .conftest import Trained

psutil = pytest.importorskip("psutil")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine, which scripts join rather than start one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Its own 15 would let all other tests go before.
        context = ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False)
        yield context.address_info["gcs_address"]
        ray.shutdown()


def find_actors() -> list[psutil.Process]:
    """The processes of the cluster that hold a detector."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ray::" in child.name() and "Scorer" in "".join(child.cmdline())]


class Script:
    """The page's script at work on a cluster."""

    def __init__(self, cluster: str, folder: Path, model: Path, pictures: Path) -> None:
        page = ROOT / "docs" / "how_to" / "ray.md"
        (block,) = (block for block in find_blocks(page) if block.language == "python")
        (folder / "score_with_ray.py").write_text(block.text)
        self.output, self.log = folder / "scores.csv", folder / "log.txt"
        command = [sys.executable, "score_with_ray.py", str(model), str(pictures), str(self.output)]
        environment = os.environ | {"RAY_ADDRESS": cluster, "RAY_DEDUP_LOGS": "0", "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)

    def rows(self) -> list[dict[str, str]]:
        """The results so far."""
        with self.output.open(newline="") as file:
            return list(csv.DictReader(file))

    def wait_for_rows(self, count: int) -> None:
        """Wait until there are more results than that."""
        end = time.monotonic() + 120
        while not self.output.exists() or len(self.rows()) <= count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def running(cluster: str, folder: Path, model: Path, pictures: Path) -> Iterator[Script]:
    """Start the script, and kill it where it has not ended."""
    script = Script(cluster, folder, model, pictures)
    try:
        yield script
    finally:
        script.process.kill()
        script.process.wait()


def test_no_picture_is_lost_or_doubled(cluster: str, trained: Trained, tmp_path: Path) -> None:
    """The script is killed, started again, and then one of its actors is killed."""
    pictures = [str(path) for path in find_images([str(trained.folder / "digits")])]
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "digits").symlink_to(trained.folder / "digits", target_is_directory=True)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    with running(cluster, tmp_path, trained.xml, folder) as script:
        script.wait_for_rows(0)
    first = len(script.rows())
    assert 0 < first < len(pictures)
    with running(cluster, tmp_path, trained.xml, folder) as script:
        script.wait_for_rows(first)
        find_actors()[-1].kill()
        assert len(script.rows()) < len(pictures)
        assert script.process.wait(300) == 0, script.log.read_text()
    rows = {row["path"]: row for row in script.rows()}
    assert len(rows) == len(script.rows()) == len(pictures) + 1
    assert rows.pop(str(folder / "broken.png"))["label"] == "error"
    predictions = Detector(trained.xml, hint="throughput").predict(pictures)
    assert [float(rows[path]["score"]) for path in pictures] == pytest.approx([p.score for p in predictions], abs=1e-6)
    assert [rows[path]["label"] == "anomalous" for path in pictures] == [p.is_anomalous for p in predictions]
    assert f"{len(pictures)} pictures" in script.log.read_text()

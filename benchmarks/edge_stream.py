# SPDX-License-Identifier: Apache-2.0
"""Throughput, delay of predictions and cold start of the edge runtime, on an export of the quickstart's size.

Throughput: 5,000 small files, by ``Detector.stream`` and by ``ganomaly-edge predict``. Delay: a camera that gives an
image every 0.2 s and is silent in between, from the moment at which an image is handed out to its prediction; beside it
the time of one ``Detector.predict``. Cold start: from the start of a fresh interpreter to the first result.

    PYTHONPATH=. python benchmarks/edge_stream.py [--images 5000] [--output results.json]
"""

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.inference import OURS, cold_start, train_shortly
from ganomaly_plugin import GANomaly
from ganomaly_plugin.edge import Detector

ROOT = Path(__file__).parent
VERDICTS = 30
"""Images of the silent camera."""
PAUSE = 0.2
"""Seconds between two of them."""


def measure_throughput(model: Path, images: list[Path], folder: Path) -> dict[str, float]:
    """Return images a second, in Python and on the command line."""
    detector = Detector(model, hint="throughput")
    list(detector.stream(images[:50]))
    start = time.perf_counter()
    count = sum(1 for _ in detector.stream(images))
    result = {"stream": count / (time.perf_counter() - start)}
    listed = "\n".join(map(str, images))
    command = [sys.executable, "-m", "ganomaly_plugin.edge.command", "predict", str(model), "-"]
    start = time.perf_counter()
    subprocess.run([*command, "--output", str(folder / "results.jsonl")], input=listed, text=True, capture_output=True)
    lines = len((folder / "results.jsonl").read_text().splitlines())
    return result | {"predict_with_start": lines / (time.perf_counter() - start)}


def measure_delay(model: Path, image: Path) -> dict[str, float]:
    """Return percentiles of milliseconds from image to prediction, with a source that is silent in between."""
    detector = Detector(model, hint="throughput")
    detector.predict(image)
    alone = []
    for _ in range(VERDICTS):
        start = time.perf_counter()
        detector.predict(image)
        alone.append((time.perf_counter() - start) * 1e3)
    given: list[float] = []

    def camera() -> Iterator[Path]:
        for _ in range(VERDICTS):
            given.append(time.perf_counter())
            yield image
            time.sleep(PAUSE)

    delays = [(time.perf_counter() - given[number]) * 1e3 for number, _ in enumerate(detector.stream(camera()))]
    return {
        f"{name}_p{percentile}": float(np.percentile(values, percentile))
        for name, values in (("stream", delays), ("model", alone))
        for percentile in (50, 95, 100)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "edge_stream.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = GANomaly(image_size=32, n_features=32, input_channels=1, visualizer=False)
        train_shortly(model, folder)
        path = model.to_openvino(folder / "export")
        files = sorted((folder / "digits").rglob("*.png"))
        images = []
        for number, file in enumerate(itertools.islice(itertools.cycle(files), arguments.images)):
            images.append(folder / f"{number}.png")
            images[-1].symlink_to(file)
        result = {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "images_per_second": measure_throughput(path, images, folder),
            "milliseconds_to_prediction": measure_delay(path, images[0]),
            "cold_start": cold_start(OURS.format(model=str(path), image=str(images[0])), folder),
        }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

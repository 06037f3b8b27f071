# SPDX-License-Identifier: Apache-2.0
"""Milliseconds an image of every model, the GANomaly paper's Table 2 repeated.

All models have 64 features and a latent code of 100 and get the same batches of raw images at the size of their
networks: grey and RGB at 32 pixels (the paper's MNIST and CIFAR-10), RGB at 64 (its X-ray patches). Weights are as
initialised, which costs the same as trained ones. The models take turns, so that other load on the machine affects all
alike; AnoGAN, whose search takes minutes, has one turn.

    python -m benchmarks.run_time [--batch 8] [--rounds 5] [--output results.json]
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pandas import DataFrame, Series

import ganomaly_plugin
from benchmarks.inference import compile_openvino

ROOT = Path(__file__).parent
MODELS = ("AnoGAN", "EGBAD", "GANomaly", "Autoencoder", "VAE", "FAnoGAN", "SkipGANomaly")
INPUTS = {"32 px grey": (32, 1), "32 px RGB": (32, 3), "64 px RGB": (64, 3)}
PAPER = {"AnoGAN": (7120, 7120, 7110), "EGBAD": (8.92, 8.71, 8.88), "GANomaly": (2.79, 2.21, 2.66)}
"""The paper's milliseconds on MNIST, CIFAR-10 and UBA, on a GPU of 2018."""


def measure(size: int, channels: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds an image of each model, in PyTorch and in OpenVINO where it can be exported."""
    images = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
    variants: dict[tuple[str, str], Callable[[np.ndarray], Any]] = {}
    for name in MODELS:
        settings = {"image_size": size, "input_channels": channels, "n_features": 64, "latent_vec_size": 100}
        model = getattr(ganomaly_plugin, name)(**settings, visualizer=False).eval()

        @torch.no_grad()
        def run(images: np.ndarray, model: Any = model) -> Any:
            return model(torch.from_numpy(images))

        variants[name, "PyTorch"] = run
        if name != "AnoGAN":
            with tempfile.TemporaryDirectory() as folder:
                variants[name, "OpenVINO"] = compile_openvino(model.to_openvino(folder), "f32")
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants}
    for turn in range(rounds + 1):
        for (name, engine), variant in variants.items():
            if name == "AnoGAN" and turn != 1:
                continue
            start = time.perf_counter()
            variant(images)
            if turn > 0:  # The first one warms up.
                times[name, engine].append((time.perf_counter() - start) * 1e3 / batch)
    found: dict[str, dict[str, float]] = {name: {} for name in MODELS}
    for (name, engine), values in times.items():
        found[name][engine] = float(np.median(values))
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "run_time.json")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    result = {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "batch": arguments.batch,
        "milliseconds": {label: measure(*shape, arguments.batch, arguments.rounds) for label, shape in INPUTS.items()},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")

    for column, (label, times) in enumerate(result["milliseconds"].items()):
        frame = DataFrame(times).T.assign(paper=Series({name: row[column] for name, row in PAPER.items()}))
        print(f"\n{label}\n{frame.to_string(float_format='%.3g')}")


if __name__ == "__main__":
    main()

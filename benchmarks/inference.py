# SPDX-License-Identifier: Apache-2.0
"""Cold start, latency and throughput of inference: PyTorch, ONNX Runtime, OpenVINO, and both inferencers.

Cold start runs a fresh interpreter from its start to the first result and reads its peak memory: ours
(``ganomaly_plugin.edge``) beside anomalib's ``OpenVINOInferencer``, on the same file. Latency is of batch 1, throughput
of batches of 8 and 64; the variants take turns, a round each, so that whatever else the machine does hits all alike.
"PyTorch, image by image" passes the images of a batch through the networks one after another, as version 0.1.0 did.
The models are GANomaly with 64 features and a latent code of 100, RGB, after a few training steps on scikit-learn's
digits, which also calibrate INT8; anomalib's Ganomaly has its defaults at the same size.

    python benchmarks/inference.py [--sizes 32 64 256] [--rounds 10] [--output results.json]
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.models import Ganomaly
from pandas import DataFrame
from torch.utils.flop_counter import FlopCounterMode

from ganomaly_plugin import Digits, GANomaly
from ganomaly_plugin.compare.run import build_engine
from ganomaly_plugin.edge.detector import shared_core

ROOT = Path(__file__).parent
SECONDS = 0.3
"""Duration of one round of one variant."""
BATCHES = (8, 64)
"""Images at a time when throughput is measured."""
LARGEST = 64
"""Side of the images in pixels up to which the larger batch is measured: at 256, a batch takes seconds."""

OURS = """
from ganomaly_plugin.edge import Detector
Detector({model!r}).predict({image!r})
"""
ANOMALIBS = """
from anomalib.deploy import OpenVINOInferencer
OpenVINOInferencer({model!r}, device="CPU").predict({image!r})
"""


def cold_start(code: str, folder: Path) -> dict[str, float]:
    """Run code in a fresh interpreter and return seconds and peak megabytes."""
    watcher = (
        "import resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True, capture_output=True)\n"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", watcher, code], check=True, capture_output=True, text=True, cwd=folder)
        for _ in range(3)
    ]
    values = np.array([[float(value) for value in run.stdout.split()] for run in runs])
    seconds, megabytes = np.median(values, axis=0)
    return {"seconds": float(seconds), "megabytes": float(megabytes)}


def train_shortly(model: Any, folder: Path) -> Digits:
    """Train a few steps, so that thresholds and statistics exist, and return the digits."""
    datamodule = Digits(folder / "digits", 8)
    engine = build_engine(
        folder, [], {"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 3, "limit_val_batches": 2}
    )
    engine.fit(model, datamodule=datamodule)
    return datamodule


def compile_openvino(path: Path, precision: str) -> Callable[[np.ndarray], Any]:
    """Return the model, compiled for latency."""
    return shared_core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    )


def build_variants(size: int, folder: Path) -> tuple[dict[str, Callable[[np.ndarray], Any]], float, Path]:
    """Return what to time on raw images ``(B, 3, size, size)``, GFLOP an image, and the OpenVINO file."""
    import onnxruntime

    ours = GANomaly(image_size=size, visualizer=False)
    datamodule = train_shortly(ours, folder)
    ours.eval()
    stock = Ganomaly(pre_processor=Ganomaly.configure_pre_processor((size, size)), visualizer=False).eval()
    session = onnxruntime.InferenceSession(ours.to_onnx(folder))
    fp32 = ours.to_openvino(folder / "fp32")
    int8 = ours.to_openvino(folder / "int8", compression_type=CompressionType.INT8_PTQ, datamodule=datamodule)

    def torch_variant(model: Any) -> Callable[[np.ndarray], Any]:
        def run(image: np.ndarray) -> Any:
            with torch.no_grad():
                return model(torch.from_numpy(image))

        return run

    @torch.no_grad()
    def image_by_image(images: np.ndarray) -> Any:
        scored = [ours.model(image) for image in ours.pre_processor(torch.from_numpy(images)).split(1)]
        return ours.post_processor(
            InferenceBatch(
                pred_score=torch.cat([output.pred_score for output in scored]),
                anomaly_map=torch.cat([output.anomaly_map for output in scored]),
            )
        )

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(torch.rand(1, 3, size, size))
    variants = {
        "anomalib's Ganomaly, PyTorch": torch_variant(stock),
        "PyTorch": torch_variant(ours),
        "PyTorch, image by image": image_by_image,
        "ONNX Runtime": lambda image: session.run(None, {session.get_inputs()[0].name: image}),
        "OpenVINO FP32": compile_openvino(fp32, "f32"),
        "OpenVINO INT8": compile_openvino(int8, "f32"),
    }
    if "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        variants["OpenVINO bf16"] = compile_openvino(fp32, "bf16")
    return variants, counter.get_total_flops() / 1e9, fp32


def measure(variants: dict[str, Callable[[np.ndarray], Any]], size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return each variant's latency percentiles in milliseconds, and its throughput by batch in images a second."""
    batches = [batch for batch in BATCHES if batch == BATCHES[0] or size <= LARGEST]
    images = np.random.default_rng(0).random((batches[-1], 3, size, size), dtype=np.float32)
    milliseconds: dict[tuple[str, int], list[float]] = {(name, n): [] for name in variants for n in (1, *batches)}
    for name, batch in milliseconds:
        variants[name](images[:batch])
    for _ in range(rounds):
        for (name, batch), values in milliseconds.items():
            end = time.perf_counter() + SECONDS
            while (start := time.perf_counter()) < end:
                variants[name](images[:batch])
                values.append((time.perf_counter() - start) * 1e3)
    return {
        name: {
            "p50": float(np.percentile(milliseconds[name, 1], 50)),
            "p95": float(np.percentile(milliseconds[name, 1], 95)),
        }
        | {f"images_per_second_{n}": n / float(np.median(milliseconds[name, n])) * 1e3 for n in batches}
        for name in variants
    }


def peak_gflops() -> float:
    """Return the machine's measured rate of single-precision matrix multiplication."""
    seconds = timeit.repeat("matrix @ matrix", globals={"matrix": torch.rand(2048, 2048)}, number=1, repeat=10)
    return 2 * 2048**3 / min(seconds) / 1e9


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "inference.json")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "openvino": openvino.get_version(),
        "peak_gflops": peak_gflops(),
        "sizes": {},
    }
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            variants, gflop, path = build_variants(size, folder)
            result["sizes"][size] = {"gflop": gflop, "latency": measure(variants, size, arguments.rounds)}
            if "cold_start" not in result:
                image = str(next((folder / "digits").rglob("*.png")))
                result["cold_start"] = {
                    "ganomaly_plugin.edge": cold_start(OURS.format(model=str(path), image=image), folder),
                    "anomalib's OpenVINOInferencer": cold_start(ANOMALIBS.format(model=str(path), image=image), folder),
                }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")

    print(DataFrame(result["cold_start"]).T.round(2))
    for size, content in result["sizes"].items():
        table = DataFrame(content["latency"]).T
        # Of the machine's rate of matrix multiplication, at batch 1; anomalib's networks have other operations.
        table["fraction_of_peak"] = content["gflop"] / table["p50"] * 1e3 / result["peak_gflops"]
        print(f"\n{size} px, {content['gflop']:.3f} GFLOP an image, peak {result['peak_gflops']:.0f} GFLOP/s")
        print(table.round(2).to_string())


if __name__ == "__main__":
    main()

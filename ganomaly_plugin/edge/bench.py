# SPDX-License-Identifier: Apache-2.0
"""``ganomaly-edge bench``: latency and throughput of a model on this device."""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ganomaly_plugin.edge.detector import Detector
from ganomaly_plugin.edge.image_input import MAX_PIXELS
from ganomaly_plugin.edge.progress_line import ProgressLine


def run(options: argparse.Namespace) -> int:
    """Measure the model on noise, one image at a time and many.

    Raises:
        ValueError: If the images are larger than those that are scored.
    """
    height, width = options.size
    if height * width > MAX_PIXELS:
        msg = f"--size is {height} x {width}, more than {MAX_PIXELS} pixels: choose a smaller one."
        raise ValueError(msg)
    image = np.random.default_rng(0).integers(0, 256, (*options.size, 3), dtype=np.uint8)
    latency = Detector(options.model, options.device, "latency")
    latency.predict(image)
    milliseconds: list[float] = []
    progress = ProgressLine()
    start = time.perf_counter()
    while (before := time.perf_counter()) - start < options.seconds or not milliseconds:
        latency.predict(image)
        milliseconds.append((time.perf_counter() - before) * 1e3)
        progress.show(f"one at a time: {before - start:.0f} of {options.seconds:g} s")
    progress.clear()
    print(f"one at a time: {len(milliseconds) / (time.perf_counter() - start):.1f} images/s")
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
    print(f"latency: p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms")

    throughput = Detector(options.model, options.device, "throughput")
    start = time.perf_counter()

    def endless() -> Iterator[npt.NDArray[np.uint8]]:
        yield image
        while (now := time.perf_counter()) - start < options.seconds:
            progress.show(f"stream: {now - start:.0f} of {options.seconds:g} s")
            yield image

    count = sum(1 for _ in throughput.stream(endless()))
    progress.clear()
    print(f"stream: {count / (time.perf_counter() - start):.1f} images/s")
    return 0

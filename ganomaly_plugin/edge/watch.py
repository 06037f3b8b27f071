# SPDX-License-Identifier: Apache-2.0
"""``ganomaly-edge watch``: score what a camera writes into a folder, until it is stopped."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from ganomaly_plugin.edge.detector import Detector
from ganomaly_plugin.edge.drift import DriftMonitor
from ganomaly_plugin.edge.folder_follower import FolderFollower
from ganomaly_plugin.edge.image_list import Frame
from ganomaly_plugin.edge.line_summary import LineSummary
from ganomaly_plugin.edge.program_starter import ProgramStarter
from ganomaly_plugin.edge.results import ANOMALOUS, Results
from ganomaly_plugin.edge.scoring import build_detector, score_frames


def run(options: argparse.Namespace) -> int:
    """Follow the folder until SIGINT or SIGTERM, and finish what has begun."""
    stopped = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda number, _: _stop(stopped, number))
    # All that may be wrong is found before the file of earlier results is touched.
    detector = build_detector(options, "latency")
    drift = _build_drift_monitor(detector, options.drift_window)
    with ExitStack() as stack:
        starter = stack.enter_context(closing(ProgramStarter(options.on_anomaly))) if options.on_anomaly else None
        results = Results(options.output, options.resume, detector.model_hash, detector.decision_threshold)
        stack.enter_context(closing(results))
        follower = FolderFollower(options.folder, results.names, stopped)
        if not options.resume and (existing := follower.skip_existing()):
            _say(f"{existing} images that are in '{options.folder}' already are left out; --resume takes them in.")
        summary = stack.enter_context(closing(LineSummary(options.summary_seconds)))
        found: dict[str, float] = {}

        def frames() -> Iterator[Frame]:
            for path in follower:
                found[str(path)] = time.perf_counter()
                yield Frame(str(path), path)

        for frame, outcome in stack.enter_context(closing(score_frames(detector, frames()))):
            if isinstance(outcome, Exception):
                if follower.try_again(Path(frame.name)):
                    continue
                result = results.write_error(frame.name, outcome)
                _say(result.error)
            else:
                result = results.write_score(frame.name, outcome.score, outcome.is_anomalous)
            if starter is not None and result.label == ANOMALOUS:
                starter.start(result)
            summary.add(result, time.perf_counter() - found.pop(frame.name))
            if drift is not None and result.score is not None and (warning := drift.add(result.score)):
                _say(warning)
    return 0


def _stop(stopped: threading.Event, signal_number: int) -> None:
    """End the run in good order; the same signal again ends it at once."""
    stopped.set()
    signal.signal(signal_number, signal.SIG_DFL)


def _build_drift_monitor(detector: Detector, window: int) -> DriftMonitor | None:
    if detector.calibration_scores is None:
        _say(f"'{detector.model}' holds no scores to see drift by: calibrate it (ganomaly-edge calibrate).")
        return None
    return DriftMonitor(np.array(detector.calibration_scores), window)


def _say(text: str) -> None:
    print(f"ganomaly-edge: {text}", file=sys.stderr, flush=True)

# SPDX-License-Identifier: Apache-2.0
"""``ganomaly-edge watch``: score what a camera writes into a folder, until it is stopped."""

import argparse
import signal
import sys
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
    stop = _Stop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, stop)
    # All that may be wrong is found before the file of earlier results is touched.
    detector = build_detector(options, "latency")
    drift = _build_drift_monitor(detector, options.drift_window)
    with ExitStack() as stack:
        starter = None
        if options.on_anomaly is not None:
            starter = stack.enter_context(closing(ProgramStarter(options.on_anomaly)))
        results = Results(options.output, options.resume, detector.model_hash, detector.decision_threshold)
        stack.enter_context(closing(results))
        follower = FolderFollower(options.folder, results.scored, stop.is_asked, options.settle)
        if not options.resume and (existing := follower.skip_existing()):
            _say(f"{existing} images that are in '{options.folder}' already are left out; --resume takes them in.")
        count_waiting = (lambda: starter.waiting) if starter is not None else lambda: 0
        summary = stack.enter_context(closing(LineSummary(options.summary_seconds, count_waiting)))
        found: dict[str, float] = {}

        def frames() -> Iterator[Frame]:
            for path in follower:
                found[str(path)] = time.perf_counter()
                yield Frame(str(path), path)

        for frame, outcome in stack.enter_context(closing(score_frames(detector, frames()))):
            if not follower.finish(Path(frame.name), readable=not isinstance(outcome, Exception)):
                continue
            if isinstance(outcome, Exception):
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


class _Stop:
    """Ends the run in good order; the same signal again ends it at once.

    A signal may interrupt the handler of another one, so it takes no lock: whoever waits looks for it now and then.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, signal_number: int, _: object) -> None:
        self._asked = True
        signal.signal(signal_number, signal.SIG_DFL)

    def is_asked(self) -> bool:
        """Return whether a signal has come."""
        return self._asked


def _build_drift_monitor(detector: Detector, window: int) -> DriftMonitor | None:
    if detector.calibration_scores is None:
        _say(f"'{detector.model}' holds no scores to see drift by: calibrate it (ganomaly-edge calibrate).")
        return None
    return DriftMonitor(np.array(detector.calibration_scores), window)


def _say(text: str) -> None:
    print(f"ganomaly-edge: {text}", file=sys.stderr, flush=True)

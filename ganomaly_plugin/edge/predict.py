# SPDX-License-Identifier: Apache-2.0
"""``ganomaly-edge predict``: score images and write the results."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing

from ganomaly_plugin.edge.heat_map import save_map
from ganomaly_plugin.edge.image_list import Frame, find_images, read_frames
from ganomaly_plugin.edge.progress_line import ProgressLine
from ganomaly_plugin.edge.results import Results, written_name
from ganomaly_plugin.edge.scoring import build_detector, score_frames


def run(options: argparse.Namespace) -> int:
    """Score the images of the command line."""
    # All that may be wrong is found before the file of earlier results is touched.
    detector = build_detector(options, "throughput")
    frames = read_frames(find_images(options.paths))
    progress = ProgressLine()
    with (
        closing(Results(options.output, options.resume, detector.model_hash, detector.decision_threshold)) as results,
        closing(score_frames(detector, _unseen(frames, results.scored))) as scored,
    ):
        for frame, outcome in scored:
            if isinstance(outcome, Exception):
                progress.clear()
                print(f"ganomaly-edge: {results.write_error(frame.name, outcome).error}", file=sys.stderr)
                continue
            if options.save_maps is not None:
                save_map(outcome, frame.name, options.save_maps)
            results.write_score(frame.name, outcome.score, outcome.is_anomalous)
            progress.show(f"{results.count} images, {results.anomalous} anomalous, {results.errors} not readable")
    progress.clear()
    print(f"{results.count} images: {results.anomalous} anomalous, {results.errors} not readable", file=sys.stderr)
    return 2 if results.errors else int(results.anomalous > 0)


def _unseen(frames: Iterable[Frame], seen: set[str]) -> Iterator[Frame]:
    """Yield each frame once, and add its name to those seen."""
    for frame in frames:
        name = written_name(frame.name)
        if name not in seen:
            seen.add(name)
            yield frame

# SPDX-License-Identifier: Apache-2.0
"""Score what a user named: the detector that the arguments ask for, and each frame with its outcome."""

import argparse
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Literal

from ganomaly_plugin.edge.detector import Detector, Prediction
from ganomaly_plugin.edge.image_input import MAX_PIXELS, Source
from ganomaly_plugin.edge.image_list import Frame


def build_detector(options: argparse.Namespace, hint: Literal["latency", "throughput"]) -> Detector:
    """Build the detector of a command that scores images.

    Raises:
        ValueError: If the threshold is no score of this model.
    """
    detector = Detector(options.model, options.device, hint, options.threshold, max_pixels=max_pixels(options))
    scores_end_at_one = detector.model_threshold is not None and 0 <= detector.model_threshold <= 1
    if options.threshold is not None and scores_end_at_one and not 0 <= options.threshold <= 1:
        msg = (
            f"--threshold is {options.threshold:g}, but the scores of '{options.model}' lie in [0, 1] (its own "
            f"threshold is {detector.model_threshold:g}): choose one of these."
        )
        raise ValueError(msg)
    return detector


def max_pixels(options: argparse.Namespace) -> int:
    """Return the limit for images."""
    limit: int = options.max_pixels or MAX_PIXELS
    return limit


def score_frames(
    detector: Detector, frames: Iterable[Frame]
) -> Generator[tuple[Frame, Prediction | Exception], None, None]:
    """Yield each frame in its order with its prediction, or with the reason why it has none."""
    waiting: deque[Frame] = deque()

    def sources() -> Iterator[Source | Exception]:
        for frame in frames:
            waiting.append(frame)
            yield frame.source

    with closing(detector.attempt(sources())) as outcomes:
        for _, outcome in outcomes:
            yield waiting.popleft(), outcome

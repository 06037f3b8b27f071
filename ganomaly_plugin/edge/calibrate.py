# SPDX-License-Identifier: Apache-2.0
"""``ganomaly-edge calibrate``: a model with thresholds from a line's own parts."""

import argparse
import os

from ganomaly_plugin.edge.detector import Detector
from ganomaly_plugin.edge.histogram import save_histogram
from ganomaly_plugin.edge.image_list import find_images
from ganomaly_plugin.edge.progress_line import ProgressLine
from ganomaly_plugin.edge.scoring import max_pixels


def run(options: argparse.Namespace) -> int:
    """Score the parts, write the calibrated model and its histogram, and print the table.

    Raises:
        FileExistsError: If the picture of the scores is there already.
        FileNotFoundError: If there are no such parts.
    """
    output = options.output or options.model.with_name(f"{options.model.stem}.calibrated.xml")
    picture = output.with_suffix(".png")
    if picture.exists():
        msg = f"'{picture}', where the scores are to be drawn, is there already: name another file (--output)."
        raise FileExistsError(msg)
    detector = Detector(options.model, options.device, "throughput", max_pixels=max_pixels(options))
    good, bad = (list(find_images([path])) if path else [] for path in (options.good, options.bad))
    missing = next((path for path in (*good, *bad) if not os.path.exists(path)), None)  # noqa: PTH110  (takes any name)
    if missing is not None:
        msg = f"There is no file or folder '{missing}': correct the path."
        raise FileNotFoundError(msg)
    progress = ProgressLine()
    calibration = detector.calibrate(
        good,
        bad,
        output,
        options.false_alarms,
        options.recall,
        scored=lambda count: progress.show(f"{count} of {len(good) + len(bad)} images"),
    )
    progress.clear()
    save_histogram(calibration, picture)
    print(f"{calibration.table()}\nwritten to {output}, scores drawn in {picture}")
    return 0

# SPDX-License-Identifier: Apache-2.0
"""Keep the figures of a comparison in ``benchmarks/results``: a row for each run, and one for each timed export.

    python -m benchmarks.keep results/digits [--name digits]

writes ``digits.csv`` and, where exports were timed, ``digits_timings.csv``. The name is that of the configuration in
``configs/compare``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pandas import DataFrame

from ganomaly_plugin.compare.summary import epoch_figures

RESULTS = Path(__file__).parent / "results"
OF_A_RUN = ("fit_seconds", "test_seconds", "parameters", "peak_megabytes")
"""What a row keeps besides the metrics."""
OF_AN_EXPORT = ("dataset", "model", "format", "p50", "p95", "images_per_second", "megabytes")


def keep(report: dict[str, Any]) -> tuple[DataFrame, DataFrame]:
    """Return the runs and the timed exports of a comparison, without those that failed.

    Args:
        report: Content of its ``results.json``.
    """
    runs = [
        {key: run[key] for key in ("dataset", "category", "model", "seed")}
        | run["result"]["metrics"]
        | epoch_figures(run["result"]["epochs"])
        | {key: run["result"][key] for key in OF_A_RUN}
        | {"machine": report["machine"]}
        for run in report["runs"]
        if run["result"]
    ]
    timings = [{key: timed[key] for key in OF_AN_EXPORT} for timed in report["timings"] if not timed["reason"]]
    return DataFrame(runs), DataFrame(timings)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output of the comparison")
    parser.add_argument("--name", help="name of the files; that of the folder by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the files")
    arguments = parser.parse_args()
    runs, timings = keep(json.loads((arguments.folder / "results.json").read_text()))
    name = arguments.name or arguments.folder.resolve().name
    runs.to_csv(arguments.output / f"{name}.csv", index=False, float_format="%.6g")
    if len(timings):
        timings.to_csv(arguments.output / f"{name}_timings.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()

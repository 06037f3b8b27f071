# SPDX-License-Identifier: Apache-2.0
"""GANomaly against anomalib's own Ganomaly on the scikit-learn digits, ten classes and several seeds.

Both train with the quickstart's image size, width, batch size and epochs, on the same split; the figure is the image
AUROC of the raw scores after the last epoch. Every finished run is saved at once, and a run that is saved is not
repeated, so the script can be stopped and started again.

    python benchmarks/digits.py [--seeds 0 1 2] [--jobs 2] [--output results.json]
"""

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.report import mean_and_deviation

ROOT = Path(__file__).parent
RECIPE = yaml.safe_load((ROOT.parent / "configs" / "quickstart.yaml").read_text())
MODELS = ("GANomaly", "Ganomaly")


def build(model: str) -> Any:
    """Build ours from the quickstart's arguments, or anomalib's with its defaults at the same size and width."""
    from anomalib.models import Ganomaly

    from ganomaly_plugin import GANomaly

    arguments = RECIPE["model"]["init_args"]
    if model == "GANomaly":
        return GANomaly(**arguments, visualizer=False)
    size = (arguments["image_size"], arguments["image_size"])
    return Ganomaly(
        n_features=arguments["n_features"], pre_processor=Ganomaly.configure_pre_processor(size), visualizer=False
    )


def run(model_name: str, abnormal_class: int, seed: int, threads: int) -> dict[str, Any]:
    """Train one model on one split and return its record."""
    import torch
    from lightning.pytorch import seed_everything
    from sklearn.metrics import roc_auc_score

    from benchmarks.engine import build_engine
    from ganomaly_plugin import Digits

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    seed_everything(seed, verbose=False)
    data = RECIPE["data"]["init_args"] | {"abnormal_class": abnormal_class, "seed": seed}
    with tempfile.TemporaryDirectory() as root:
        datamodule = Digits(root=Path(root) / "digits", **data)
        model = build(model_name)
        engine = build_engine(root, RECIPE["trainer"]["max_epochs"])
        start = time.perf_counter()
        engine.fit(model, datamodule=datamodule)
        seconds = time.perf_counter() - start
        model.eval()
        scores, labels = [], []
        with torch.no_grad():
            for batch in datamodule.test_dataloader():
                scores.append(model.model(model.pre_processor(batch.image)).pred_score)
                labels.append(batch.gt_label)
    return {
        "model": model_name,
        "class": abnormal_class,
        "seed": seed,
        "auroc": float(roc_auc_score(torch.cat(labels), torch.cat(scores))),
        "fit_seconds": round(seconds, 1),
        "epochs": RECIPE["trainer"]["max_epochs"],
        "recipe": RECIPE["model"]["init_args"] | RECIPE["data"]["init_args"],
    }


def key(record: dict[str, Any]) -> tuple[str, int, int]:
    """Return what tells runs apart."""
    return record["model"], record["class"], record["seed"]


def table(records: list[dict[str, Any]], seeds: list[int]) -> str:
    """Lay the records of the seeds out as a Markdown table."""
    lines = ["| abnormal digit | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    aurocs = {key(record): record["auroc"] for record in records}
    by_class = {
        name: np.array([[aurocs[name, digit, seed] for seed in seeds] for digit in range(10)]) for name in MODELS
    }
    for digit in range(10):
        lines.append(f"| {digit} | " + " | ".join(mean_and_deviation(by_class[name][digit]) for name in MODELS) + " |")
    means = " | ".join(f"**{mean_and_deviation(by_class[name].mean(axis=0))}**" for name in MODELS)
    return "\n".join([*lines, f"| mean | {means} |"])


def main() -> None:
    """Run what is missing, then print the table."""
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, one thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "digits.json")
    arguments = parser.parse_args()

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    done = {key(record) for record in records}
    runs = [(name, digit, seed) for seed in arguments.seeds for digit in range(10) for name in MODELS]
    missing = [run_key for run_key in runs if run_key not in done]
    context = multiprocessing.get_context("spawn")
    with Progress() as progress, ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        task = progress.add_task("trainings", total=len(missing))
        for future in as_completed([pool.submit(run, *run_key, 1) for run_key in missing]):
            records.append(future.result())
            records.sort(key=key)
            arguments.output.write_text(json.dumps(records, indent=1) + "\n")
            progress.advance(task)
    print(table(records, arguments.seeds))


if __name__ == "__main__":
    main()

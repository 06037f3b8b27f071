# SPDX-License-Identifier: Apache-2.0
"""GANomaly against anomalib's own Ganomaly on the scikit-learn digits, ten classes and several seeds.

Both train with the quickstart's image size, width, batch size and epochs, on the same split; the figure is the image
AUROC of the raw scores after the last epoch. Every finished run is saved at once, and a run that is saved is not
repeated, so the script can be stopped and started again. ``GANomaly bf16`` trains with bf16-mixed precision; any
processor can, most of them slowly.

    python benchmarks/digits.py [--seeds 0 1 2] [--classes 1 3 8] [--models GANomaly "GANomaly bf16"] [--jobs 2]
        [--output results.json]
"""

import argparse
import itertools
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
MODELS = ("GANomaly", "Ganomaly", "GANomaly bf16")


def build(model: str) -> Any:
    """Build ours from the quickstart's arguments, or anomalib's with its defaults at the same size and width."""
    from anomalib.models import Ganomaly

    from ganomaly_plugin import GANomaly

    arguments = RECIPE["model"]["init_args"]
    if model != "Ganomaly":
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
        precision = "bf16-mixed" if model_name == "GANomaly bf16" else "32-true"
        engine = build_engine(root, RECIPE["trainer"]["max_epochs"], precision=precision)
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


def table(records: list[dict[str, Any]], models: list[str], classes: list[int], seeds: list[int]) -> str:
    """Lay the chosen records out as a Markdown table."""
    lines = ["| abnormal digit | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    aurocs = {key(record): record["auroc"] for record in records}
    values = np.array([[[aurocs[name, digit, seed] for seed in seeds] for digit in classes] for name in models])
    for row, digit in enumerate(classes):
        lines.append(f"| {digit} | " + " | ".join(mean_and_deviation(cells) for cells in values[:, row]) + " |")
    means = " | ".join(f"**{mean_and_deviation(cells)}**" for cells in values.mean(axis=1))
    return "\n".join([*lines, f"| mean | {means} |"])


def main() -> None:
    """Run what is missing, then print the table."""
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["GANomaly", "Ganomaly"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, one thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "digits.json")
    arguments = parser.parse_args()

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    done = {key(record) for record in records}
    chosen = arguments.models, arguments.classes, arguments.seeds
    runs = list(itertools.product(*chosen))
    missing = [run_key for run_key in runs if run_key not in done]
    context = multiprocessing.get_context("spawn")
    with Progress() as progress, ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        task = progress.add_task("trainings", total=len(missing))
        for future in as_completed([pool.submit(run, *run_key, 1) for run_key in missing]):
            records.append(future.result())
            records.sort(key=key)
            arguments.output.write_text(json.dumps(records, indent=1) + "\n")
            progress.advance(task)
    print(table(records, *chosen))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Image AUROC on the paper's public datasets, one class abnormal: the official code, the paper's recipe, and ours.

Columns:

* ``official``: the plain restatement in ``official_ganomaly.py``, evaluated as its code does: MNIST scaled by mean
  0.1307 and deviation 0.3081, batch statistics at test time, mean-square latent score. The test set is shuffled, so
  that batch statistics cannot give the labels away.
* ``paper``: ``configs/paper.yaml``.
* ``default``: ``configs/default.yaml``. Names such as ``default-no-averaging`` are its ablations, each of which pulls
  one lever.

With ``--model``, the columns are other detectors of the package at 32 pixels, scored after the last epoch alone: with
the settings of ``configs/compare/digits.yaml``, but AnoGAN, whose search takes seconds an image, with 100 steps.

Every column trains on the same images in batches of 64 for 15 epochs. The figure is the AUROC after the last epoch;
the best epoch on the test set is a column of its own, for comparison with papers that report it. Small budget: 6,400
training normals, 2,000 normal and 2,000 abnormal test images, drawn by the seed. Full budget: everything.

Each finished run is a file of its own, and a run that has one is not repeated, so the script can be stopped and started
again.

    python benchmarks/accuracy.py --data mnist --budget small --root ... [--seeds 0 1 2] [--columns ... | --model ...]
"""

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from anomalib.data import AnomalibDataset
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from benchmarks.accuracy_report import report
from benchmarks.engine import build_engine
from benchmarks.levers import CombinedScore, DecayedLearningRate, LittleShifts, NoRestart, SpectralNorm
from benchmarks.official_ganomaly import OfficialGANomaly
from ganomaly_plugin import EGBAD, MNIST, VAE, AnoGAN, Autoencoder, ClassFolder, FAnoGAN, GANomaly, SkipGANomaly
from ganomaly_plugin.data.datamodule import OneVsRestDataModule
from ganomaly_plugin.models.components.scores import (
    latent_l1_score,
    latent_l2_score,
    latent_relative_score,
    latent_whitened_score,
    reconstruction_error,
)

ROOT = Path(__file__).parent
BATCH_SIZE = 64
SIZE = 32
SMALL_TRAIN, SMALL_TEST = 6_400, 2_000

OVERRIDES: dict[str, dict[str, Any]] = {
    "default": {},
    "default-whitened": {"score": "latent_whitened"},
    "default-latent-100": {"latent_vec_size": 100},
    "default-latent-8": {"latent_vec_size": 8},
    "default-no-averaging": {"average_weights": False},
    "default-64-features": {"n_features": 64},
    "default-bce": {"adversarial": "bce"},
}
"""Columns of the default recipe: what each changes in it."""

LEVERS: dict[str, type[GANomaly]] = {
    "default-decay": DecayedLearningRate,
    "default-spectral-norm": SpectralNorm,
    "default-no-restart": NoRestart,
    "default-shifts": LittleShifts,
    "default-combined": CombinedScore,
}
"""Further columns of the default recipe, which change what is no option of the model."""

RIVALS: dict[str, tuple[type[AnomalibModule], dict[str, Any]]] = {
    "ae": (Autoencoder, {}),
    "vae": (VAE, {}),
    "egbad": (EGBAD, {"latent_vec_size": 16}),
    "anogan": (AnoGAN, {"latent_vec_size": 16, "lr": 0.001}),
    "f_anogan": (FAnoGAN, {"latent_vec_size": 16}),
    "skip_ganomaly": (SkipGANomaly, {}),
}
"""Columns of other detectors: the class, and what differs from its defaults."""

COLUMNS = ("official", "paper", *OVERRIDES, *LEVERS)


class Dataset(NamedTuple):
    """How a column gets its images."""

    module: type[OneVsRestDataModule]
    channels: int
    classes: tuple[str, ...]
    official_scaling: tuple[float, float]
    """Mean and deviation of the official code's normalisation."""


DATASETS = {
    "mnist": Dataset(MNIST, 1, tuple("0123456789"), (0.1307, 0.3081)),
    "cifar10": Dataset(ClassFolder, 3, ("airplane", "automobile", "bird", "cat", "deer"), (0.5, 0.5)),
}


class Run(NamedTuple):
    """One training."""

    data: str
    budget: str
    column: str
    abnormal_class: str
    seed: int

    def path(self, results: Path) -> Path:
        """Return where the record lies."""
        return results / f"{self.data}-{self.budget}" / f"{self.column}-{self.abnormal_class}-{self.seed}.json"


def recipe(column: str) -> dict[str, Any]:
    """Return the content of a column's configuration; other detectors take over the default recipe's epochs."""
    name = column if column in {"official", "paper"} else "default"
    content: dict[str, Any] = yaml.safe_load((ROOT.parent / "configs" / f"{name}.yaml").read_text())
    return content


def build_datamodule(run: Run, root: Path) -> Any:
    """Return the datamodule of a run, its sets drawn to size under the small budget."""
    module: Any = DATASETS[run.data].module

    def draw(dataset: AnomalibDataset, label: int, count: int, generator: np.random.Generator) -> list[int]:
        rows = np.flatnonzero(dataset.samples.label_index == label)
        return [int(row) for row in generator.permutation(rows)[:count]]

    class Small(module):
        train_data: AnomalibDataset
        test_data: AnomalibDataset

        def _setup(self, _stage: str | None = None) -> None:
            super()._setup(_stage)
            generator = np.random.default_rng(self.seed)
            train, test = self.train_data, self.test_data
            self.train_data = train.subsample(draw(train, 0, SMALL_TRAIN, generator))
            self.test_data = test.subsample(
                [row for label in (0, 1) for row in draw(test, label, SMALL_TEST, generator)]
            )

    return (Small if run.budget == "small" else module)(
        root=root,
        abnormal_class=run.abnormal_class,
        seed=run.seed,
        train_batch_size=BATCH_SIZE,
        eval_batch_size=BATCH_SIZE,
        val_split_mode="none",
    )


def auroc(labels: torch.Tensor, scores: torch.Tensor) -> float:
    """Return the area under the ROC curve of raw scores."""
    return float(roc_auc_score(labels.cpu(), scores.double().cpu()))


class AurocPerEpoch(Callback):
    """Scores GANomaly's test images after each epoch, by every score that one training can serve.

    Other detectors' are scored after the last epoch alone.
    """

    def __init__(self) -> None:
        self.aurocs: dict[str, list[float]] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score after the epoch before, when the module's own hooks have run."""
        if trainer.current_epoch > 0 and isinstance(pl_module, GANomaly):
            self.score(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score after the last epoch."""
        self.score(trainer, pl_module)

    @torch.no_grad()
    def score(self, trainer: Any, model: Any) -> None:
        """Add one value to each score's list."""
        was_training = model.training
        model.eval()
        batches = [
            (model.model.to_input(model.pre_processor(batch.image.to(model.device))), batch.gt_label)
            for batch in trainer.datamodule.test_dataloader()
        ]
        if isinstance(model, GANomaly):
            scores = every_score(model, [images for images, _ in batches])
        else:
            scores = {"own": torch.cat([model.model.infer(images).pred_score for images, _ in batches])}
        model.train(was_training)
        labels = torch.cat([labels for _, labels in batches])
        for name, values in scores.items():
            self.aurocs.setdefault(name, []).append(auroc(labels, values))


def every_score(model: GANomaly, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return every score that the model can give, each over all batches."""
    outputs = [model.model.inference_generator(batch) for batch in batches]
    latent = torch.cat([output.latent for output in outputs])
    rebuilt = torch.cat([output.latent_of_reconstruction for output in outputs])
    errors = [reconstruction_error(output.images, output.reconstructions) for output in outputs]
    scores = {
        "latent_l1": latent_l1_score(latent, rebuilt),
        "latent_l2": latent_l2_score(latent, rebuilt),
        "latent_relative": latent_relative_score(latent, rebuilt),
        "reconstruction": torch.cat([error.flatten(1).mean(1) for error in errors]),
    }
    if model.model.score == "latent_whitened":  # Otherwise the precision was not measured.
        scores["latent_whitened"] = latent_whitened_score(latent, rebuilt, model.model.precision)
    if isinstance(model, CombinedScore):
        scores["combined"] = torch.cat([model.combined_score(batch) for batch in batches])
    return scores


def train_ours(run: Run, datamodule: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Train through anomalib's engine and return the AUROCs of each epoch."""
    if run.column in RIVALS:
        kind, changes = RIVALS[run.column]
        arguments, score = {"image_size": SIZE, **changes}, "own"
    else:
        kind = LEVERS.get(run.column, GANomaly)
        arguments = settings["model"]["init_args"] | OVERRIDES.get(run.column, {})
        score = "combined" if kind is CombinedScore else arguments["score"]
    arguments["input_channels"] = DATASETS[run.data].channels
    model = kind(**arguments, visualizer=False)
    callback = AurocPerEpoch()
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(folder, settings["trainer"]["max_epochs"], accelerator="auto", callbacks=[callback])
        engine.fit(model, datamodule=datamodule)
    return {"auroc": callback.aurocs[score], "scores": callback.aurocs, "model": arguments}


def train_official(run: Run, datamodule: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Train the restatement and evaluate it as the official code does, on a shuffled test set."""
    from torchvision.transforms.v2 import Resize

    dataset = DATASETS[run.data]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, deviation = dataset.official_scaling
    datamodule.setup()
    for data in (datamodule.train_data, datamodule.test_data):
        data.augmentations = Resize((SIZE, SIZE), antialias=True)

    def prepare(batch: Any) -> torch.Tensor:
        return ((batch.image[:, : dataset.channels] - mean) / deviation).to(device)

    # The layout changes the speed on a CPU, not what is computed.
    model = OfficialGANomaly(SIZE, dataset.channels).to(device).to(memory_format=torch.channels_last)
    test = datamodule.test_data
    shuffled = DataLoader(test, BATCH_SIZE, shuffle=True, collate_fn=test.collate_fn)
    aurocs = []
    for _ in range(settings["trainer"]["max_epochs"]):
        for batch in datamodule.train_dataloader():
            model.step(prepare(batch))
        batches = list(shuffled)
        scores = torch.cat([model.score(prepare(batch)) for batch in batches])  # In training mode, as the code is.
        aurocs.append(auroc(torch.cat([batch.gt_label for batch in batches]), scores))
    return {"auroc": aurocs, "scores": {"latent_l2": aurocs}, "model": settings["model"]["init_args"]}


def execute(run: Run, root: Path, threads: int) -> dict[str, Any]:
    """Train one model and return its record."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    seed_everything(run.seed, verbose=False)
    train: Callable[..., dict[str, Any]] = train_official if run.column == "official" else train_ours
    start = time.perf_counter()
    outcome = train(run, build_datamodule(run, root), recipe(run.column))
    return {
        **run._asdict(),
        **outcome,
        "seconds": round(time.perf_counter() - start),
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Run what is missing, then write and print the report."""
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATASETS, default="mnist")
    parser.add_argument("--budget", choices=("small", "full"), default="small")
    parser.add_argument(
        "--root", type=Path, required=True, help="root of the datamodule: torchvision's, or the folders"
    )
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=["official", "paper", "default"])
    parser.add_argument("--model", nargs="+", choices=RIVALS, help="other detectors, instead of GANomaly's columns")
    parser.add_argument("--classes", nargs="+", help="abnormal classes; the dataset's by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, one thread each")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "accuracy")
    arguments = parser.parse_args()

    classes = arguments.classes or DATASETS[arguments.data].classes
    missing = [
        run
        for seed in arguments.seeds
        for column in arguments.model or arguments.columns
        for name in classes
        if not (run := Run(arguments.data, arguments.budget, column, name, seed)).path(arguments.results).exists()
    ]
    context = multiprocessing.get_context("spawn")
    with Progress() as progress, ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        task = progress.add_task("trainings", total=len(missing))
        futures = {pool.submit(execute, run, arguments.root, 1): run for run in missing}
        for future in as_completed(futures):
            path = futures[future].path(arguments.results)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(future.result(), indent=1) + "\n")
            unfinished.replace(path)
            progress.advance(task)
    print(report(arguments.results / f"{arguments.data}-{arguments.budget}", COLUMNS, tuple(RIVALS)))


if __name__ == "__main__":
    main()

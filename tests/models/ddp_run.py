# SPDX-License-Identifier: Apache-2.0
"""Train, validate and test models with two processes, and keep what each process has in the end.

Usage: ddp_run.py OUTPUT MODEL.... The images that are evaluated are normal and anomalous in turn, so that one process
sees the normal ones and the other the anomalous ones. The trainer starts this script again for the second process.
"""

import sys
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from tests.engine import build_engine
from tests.models.conftest import ANOMALOUS_DIGIT

SETTINGS: dict[str, dict[str, Any]] = {
    "anogan": {"steps": 3},
    "f_anogan": {"critic_steps": 2},
    "feature_ganomaly": {"pre_trained": False, "rank": 0.1, "map_sigma": 2.0, "wadv": 1, "wenc": 1},
}
"""What models need to be quick, to need no download, or to train with all networks and with some of them."""


class Scores(Callback):
    """Gathers raw scores and labels of the images that this process tests."""

    def __init__(self) -> None:
        self.batches: list[ImageBatch] = []

    def on_test_batch_end(self, _trainer: Any, _pl_module: Any, outputs: ImageBatch, *_: Any) -> None:
        """Keep one batch."""
        self.batches.append(outputs)

    def gather(self, field: str) -> torch.Tensor:
        """Return a field of all batches."""
        return torch.cat([getattr(batch, field) for batch in self.batches])


def build_loader(digits: list[int], count: int) -> DataLoader:
    """Return batches of four images, ``count`` of them, of these digits in turn."""
    scans, labels = load_digits(return_X_y=True)
    choices = [scans[labels == digit] for digit in digits]
    items = []
    for index in range(count):
        scan = torch.tensor(choices[index % len(digits)][index // len(digits)].reshape(1, 8, 8) / 16)
        label = torch.tensor(digits[index % len(digits)] == ANOMALOUS_DIGIT)
        path = f"{index}.png"
        items.append(ImageItem(image=scan.float().expand(3, -1, -1), gt_label=label, image_path=path))
    return DataLoader(items, batch_size=4, collate_fn=ImageBatch.collate)


def run(root: Path, name: str) -> None:
    """Train, validate and test one model."""
    seed_everything(7)
    (entry,) = entry_points(group="anomalib.models", name=name)
    model = entry.load()(image_size=32, n_features=4, latent_vec_size=4, visualizer=False, **SETTINGS.get(name, {}))
    scores = Scores()
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    engine = build_engine(root, devices=2, strategy=strategy, max_epochs=2, callbacks=[scores])
    evaluated = build_loader([0, ANOMALOUS_DIGIT], 16)
    engine.fit(model, train_dataloaders=build_loader([0], 32), val_dataloaders=evaluated)
    weights = {key: value.clone() for key, value in model.model.networks.named_parameters()}
    (validated,) = engine.validate(model, dataloaders=evaluated)
    (tested,) = engine.test(model, dataloaders=evaluated)
    result = {
        "weights": weights,
        "image_threshold": model.post_processor.image_threshold,
        "pixel_threshold": model.post_processor.pixel_threshold,
        "validated": validated,
        "tested": tested,
        "raw_score": scores.gather("raw_score"),
        "gt_label": scores.gather("gt_label"),
    }
    torch.save(result, root / f"{name}.{engine.trainer.global_rank}.pt")


if __name__ == "__main__":
    for model_name in sys.argv[2:]:
        run(Path(sys.argv[1]), model_name)

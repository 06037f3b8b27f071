# SPDX-License-Identifier: Apache-2.0
"""What loading costs: one epoch over MNIST without a model, against one epoch of training, at 32 px.

Training goes through anomalib's engine with the model of ``configs/paper.yaml`` and ``configs/default.yaml``; loading
iterates the same loader, with resizing and batching, alone.

    python benchmarks/loading.py --root ... [--images 6400] [--output results.json]
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.engine import build_engine
from ganomaly_plugin import MNIST, GANomaly

ROOT = Path(__file__).parent


class EpochSeconds(Callback):
    """Takes the time of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the watch."""
        del trainer, pl_module
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        del trainer, pl_module
        self.seconds.append(time.perf_counter() - self._start)


def measure(config: str, root: Path, n_images: int) -> dict[str, Any]:
    """Train two epochs, of which the second counts, then load one more."""
    arguments = yaml.safe_load((ROOT.parent / "configs" / f"{config}.yaml").read_text())["model"]["init_args"]
    model = GANomaly(**arguments | {"input_channels": 1}, visualizer=False)
    datamodule: Any = MNIST(root, abnormal_class=2, val_split_mode="none")
    watch = EpochSeconds()
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(folder, 2, limit_train_batches=n_images // datamodule.train_batch_size, callbacks=[watch])
        engine.fit(model, datamodule=datamodule)
    start = time.perf_counter()
    for index, _ in enumerate(datamodule.train_dataloader(), start=1):
        if index == n_images // datamodule.train_batch_size:
            break
    loading = time.perf_counter() - start
    return {"config": config, "loading_seconds": loading, "epoch_seconds": watch.seconds[1]}


def main() -> None:
    """Measure both recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds torchvision's folder MNIST")
    parser.add_argument("--images", type=int, default=6_400)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "loading.json")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    records = [measure(config, arguments.root, arguments.images) for config in ("paper", "default")]
    content = {"images": arguments.images, "threads": torch.get_num_threads(), "records": records}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    print("| recipe | loading, s | training epoch, s | share |\n|---|---|---|---|")
    for record in records:
        loading, epoch = record["loading_seconds"], record["epoch_seconds"]
        print(f"| {record['config']} | {loading:.2f} | {epoch:.1f} | {loading / epoch:.1%} |")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What loading costs: one epoch over 6,400 images of MNIST without a model, against one epoch of training, at 32 px.

Training goes through anomalib's engine with the model of ``configs/paper.yaml`` and ``configs/default.yaml``; loading
iterates the same loader, with resizing and batching, alone.

    python -m benchmarks.loading --root ... [--output results.json]
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
from lightning.pytorch.profilers import SimpleProfiler
from pandas import DataFrame

from ganomaly_plugin import MNIST, GANomaly
from ganomaly_plugin.compare.run import build_engine

ROOT = Path(__file__).parent
IMAGES = 6_400


def measure(config: str, root: Path) -> dict[str, Any]:
    """Train two epochs, of which the second counts, then load one more."""
    arguments = yaml.safe_load((ROOT.parent / "configs" / f"{config}.yaml").read_text())["model"]["init_args"]
    model = GANomaly(**arguments | {"input_channels": 1}, visualizer=False)
    datamodule = MNIST(root, abnormal_class=2, max_train_images=IMAGES, val_split_mode="none")
    profiler = SimpleProfiler()
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(folder, [], {"max_epochs": 2, "accelerator": "cpu", "profiler": profiler})
        engine.fit(model, datamodule=datamodule)
    _, epoch_seconds = profiler.recorded_durations["run_training_epoch"]
    start = time.perf_counter()
    for _ in datamodule.train_dataloader():
        pass
    return {"config": config, "loading_seconds": time.perf_counter() - start, "epoch_seconds": epoch_seconds}


def main() -> None:
    """Measure both recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds torchvision's folder MNIST")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "loading.json")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    records = [measure(config, arguments.root) for config in ("paper", "default")]
    content = {"images": IMAGES, "threads": torch.get_num_threads(), "records": records}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    frame = DataFrame(records)
    print(frame.assign(fraction=frame["loading_seconds"] / frame["epoch_seconds"]).round(3))


if __name__ == "__main__":
    main()

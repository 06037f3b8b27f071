# SPDX-License-Identifier: Apache-2.0
"""First rows on real industrial images: MVTec AD screw and Magnetic Tile Defects, GANomaly at 64 px or larger.

The folder named by GANOMALY_DATA (or --data) holds `mvtec_ad/screw` in MVTec AD's layout and `magnetic_tile` in the
same layout. A tenth of the training images is held out for the threshold, so no test image is seen before the test;
the figures are those of the last epoch, image AUROC of the raw scores and pixel AUROC of the maps.

    GANOMALY_DATA=... python benchmarks/industrial.py [--seeds 0 1 2] [--epochs 30] [--image-size 64]
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent
SETS = ("screw", "magnetic_tile")


def build_datamodule(name: str, data: Path, seed: int) -> Any:
    """Build anomalib's own datamodule for one of the sets."""
    from anomalib.data import Folder, MVTecAD

    common: dict[str, Any] = {
        "train_batch_size": 16,
        "eval_batch_size": 32,
        "num_workers": 0,
        "val_split_mode": "from_train",
        "val_split_ratio": 0.1,
        "seed": seed,
    }
    if name == "screw":
        return MVTecAD(root=data / "mvtec_ad", category="screw", **common)
    root = data / "magnetic_tile"
    defects = sorted(path.name for path in (root / "test").iterdir() if path.name != "good")
    return Folder(
        name=name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{defect}" for defect in defects],
        mask_dir=[f"ground_truth/{defect}" for defect in defects],
        **common,
    )


def run(name: str, data: Path, seed: int, epochs: int, image_size: int) -> dict[str, Any]:
    """Train and test once."""
    from lightning.pytorch import seed_everything

    from benchmarks.engine import build_engine
    from ganomaly_plugin import GANomaly

    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as root:
        model = GANomaly(image_size=image_size, input_channels=1, visualizer=False)
        engine = build_engine(root, epochs, enable_progress_bar=True)
        datamodule = build_datamodule(name, data, seed)
        start = time.perf_counter()
        engine.fit(model, datamodule=datamodule)
        seconds = time.perf_counter() - start
        (metrics,) = engine.test(model, datamodule=datamodule, verbose=False)
    settings = {"set": name, "seed": seed, "epochs": epochs, "image_size": image_size}
    return {**settings, "fit_seconds": round(seconds), **metrics}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GANOMALY_DATA"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "industrial.json")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("name the data folder with --data or GANOMALY_DATA")

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    recipe = (arguments.epochs, arguments.image_size)
    done = {(record["set"], record["seed"], record["epochs"], record["image_size"]) for record in records}
    for name in arguments.sets:
        for seed in arguments.seeds:
            if (name, seed, *recipe) not in done:
                records.append(run(name, arguments.data, seed, *recipe))
                arguments.output.write_text(json.dumps(records, indent=1) + "\n")
    print("| set | image AUROC | image AP | pixel AUROC | training, min |\n|---|---|---|---|---|")
    for name in arguments.sets:
        chosen = [
            record for record in records if record["set"] == name and (record["epochs"], record["image_size"]) == recipe
        ]
        cells = []
        for metric in ("image_AUROC", "image_AveragePrecision", "pixel_AUROC"):
            values = [record[metric] for record in chosen]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}")
        cells.append(f"{np.mean([record['fit_seconds'] for record in chosen]) / 60:.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

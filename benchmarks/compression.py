# SPDX-License-Identifier: Apache-2.0
"""Image AUROC and size of the exported model under each of anomalib's compressions.

Trains GANomaly once for each dataset with digit 8 anomalous, exports it, and scores the test images with the edge
runtime. The digits of scikit-learn take ``configs/quickstart.yaml``; MNIST takes ``configs/default.yaml`` and the
images of ``configs/compare/mnist_small.yaml``. 8-bit models are calibrated on images held out from training, or on
training images where there are none.

    python -m benchmarks.compression [--mnist FOLDER] [--output results.json]
"""

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from anomalib.deploy import CompressionType
from lightning import seed_everything
from pandas import DataFrame
from sklearn.metrics import roc_auc_score

from ganomaly_plugin import MNIST, Digits, GANomaly
from ganomaly_plugin.compare.run import build_engine
from ganomaly_plugin.edge import Detector

ROOT = Path(__file__).parent
COMPRESSIONS = {"FP32": None, **{kind.name: kind for kind in CompressionType}}


def train(datamodule: Any, config: str, folder: Path) -> GANomaly:
    """Train as the configuration says."""
    settings = yaml.safe_load((ROOT.parent / "configs" / config).read_text())
    model = GANomaly(**settings["model"]["init_args"] | {"input_channels": 1}, visualizer=False)
    engine = build_engine(folder, [], settings["trainer"] | {"accelerator": "cpu", "enable_progress_bar": True})
    engine.fit(model, datamodule=datamodule)
    return model


def evaluate(path: Path, datamodule: Any) -> dict[str, float]:
    """Return the AUROC on the test images, and megabytes."""
    detector = Detector(path)
    images, labels = [], []
    for item in datamodule.test_data:
        images.append(np.round(item.image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8))
        labels.append(int(item.gt_label))
    scores = [prediction.score for prediction in detector.stream(images)]
    return {"auroc": float(roc_auc_score(labels, scores)), "megabytes": path.with_suffix(".bin").stat().st_size / 1e6}


def main() -> None:
    """Train, export, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="torchvision's root of MNIST; without it, the digits alone")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "compression.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    result: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits: Any = Digits(folder / "digits", abnormal_class=8)
        datasets = {"digits": (digits, "quickstart.yaml")}
        if arguments.mnist:
            small: dict[str, Any] = {"max_train_images": 6400, "max_test_images": 2000, "val_split_mode": "none"}
            datasets["mnist"] = (MNIST(arguments.mnist, abnormal_class=8, **small), "default.yaml")
        for data, (datamodule, config) in datasets.items():
            seed_everything(0, verbose=False)
            model = train(datamodule, config, folder)
            result[data] = {}
            for label, kind in COMPRESSIONS.items():
                path = model.to_openvino(folder / data / label, compression_type=kind, datamodule=datamodule)
                datamodule.setup("test")
                result[data][label] = evaluate(path, datamodule)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")

    columns = {(data, key): [values[key] for values in content.values()]
               for data, content in result.items() for key in ("auroc", "megabytes")}  # fmt: skip
    print(DataFrame(columns, COMPRESSIONS).round(4))


if __name__ == "__main__":
    main()

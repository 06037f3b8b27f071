# SPDX-License-Identifier: Apache-2.0
"""What a newcomer with a few pictures gets: ``configs/my_folder.yaml`` on some good and some bad parts of a larger set.

    python benchmarks/my_folder.py --root datasets/magnetic_tile --output results.json [--weights model.safetensors]

For each seed, good and bad parts are drawn and copied to a folder, the stock command trains on them and exports the
model, and ``ganomaly_plugin.edge`` scores parts that were not drawn: the false alarms among good ones, the anomalous
ones that are found, and the image AUROC. The folder is laid out like MVTec AD.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import track
from sklearn.metrics import roc_auc_score

from ganomaly_plugin.edge import Detector

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "ganomaly_plugin"]


def draw(root: Path, n_good: int, n_bad: int, n_unseen: int, seed: int) -> dict[str, list[Path]]:
    """Return the parts to learn from, and good and bad ones that stay unseen."""
    chance = random.Random(seed)
    kinds = {
        "good": sorted((root / "train" / "good").iterdir()),
        "bad": sorted(path for path in root.glob("test/*/*") if path.parent.name != "good"),
    }
    counts = {"good": n_good, "bad": n_bad}
    parts: dict[str, list[Path]] = {}
    for kind, paths in kinds.items():
        chosen = chance.sample(paths, counts[kind] + n_unseen)
        parts[kind], parts[f"unseen {kind}"] = chosen[: counts[kind]], chosen[counts[kind] :]
    return parts


def measure(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train on the parts of one seed, and score those that were not drawn."""
    parts = draw(arguments.root, arguments.good, arguments.bad, arguments.unseen, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("good", "bad"):
            (folder / "parts" / kind).mkdir(parents=True)
            for index, path in enumerate(parts[kind]):
                shutil.copy(path, folder / "parts" / kind / f"{index:04}{path.suffix}")
        options = ["--config", str(ROOT / "configs" / "my_folder.yaml"), "--data.root", "parts"]
        options += ["--seed_everything", str(seed), "--data.seed", str(seed)]
        if arguments.weights:
            options += ["--model.weights", str(arguments.weights.absolute())]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        subprocess.run([*COMMAND, "train", *options], cwd=folder, env=environment, check=True)
        seconds = time.perf_counter() - start
        (results,) = folder.glob("results/*/*/latest")
        checkpoint = results / "weights" / "lightning" / "model.ckpt"
        export = ["export", "--config", str(results / "config.yaml"), "--ckpt_path", str(checkpoint)]
        export += ["--export_type", "openvino", "--export_root", "export"]
        subprocess.run([*COMMAND, *export], cwd=folder, env=environment, check=True)
        detector = Detector(folder / "export" / "weights" / "openvino" / "model.xml")
        scored = {
            kind: [detector.predict(path) for path in track(parts[f"unseen {kind}"], f"{kind} parts")]
            for kind in ("good", "bad")
        }
    labels = [kind == "bad" for kind, found in scored.items() for _ in found]
    scores = [each.score for found in scored.values() for each in found]
    return {
        "seed": seed,
        "train_seconds": round(seconds, 1),
        "image_AUROC": roc_auc_score(labels, scores),
        "false_alarms": sum(each.is_anomalous for each in scored["good"]),
        "found": sum(each.is_anomalous for each in scored["bad"]),
    }


def main() -> None:
    """Measure and write a row a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder laid out like MVTec AD")
    parser.add_argument("--output", type=Path, required=True, help="JSON file, written after each seed")
    parser.add_argument("--weights", type=Path, help="local file with the backbone's weights")
    parser.add_argument("--good", type=int, default=200)
    parser.add_argument("--bad", type=int, default=20)
    parser.add_argument("--unseen", type=int, default=100, help="number of good parts to score, and of bad ones")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        rows.append(measure(arguments, seed))
        print(rows[-1], flush=True)
        settings = {key: getattr(arguments, key) for key in ("good", "bad", "unseen")}
        arguments.output.write_text(json.dumps({"settings": settings, "seeds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

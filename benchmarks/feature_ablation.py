# SPDX-License-Identifier: Apache-2.0
"""Compares variants of FeatureGANomaly on industrial images, from features that are computed once.

    python benchmarks/feature_ablation.py --root datasets --weights model.safetensors --output ablation.csv

Each variant differs from the default in what its name says. All train for the same number of steps with batches of 16,
and the last weights are tested. Pixel AUROC is that of every fourth row and column.
"""

import argparse
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import Folder
from lightning.pytorch import seed_everything
from rich.progress import track
from sklearn.metrics import roc_auc_score

from ganomaly_plugin import FeatureGANomaly
from ganomaly_plugin.models.feature_ganomaly.training_features import TrainingFeatures

SETS = {"screw": "mvtec_ad/screw", "tile": "magnetic_tile"}
BATCH = 16

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no generator": {"prediction_weight": 0.0},
    "no generator, all directions": {"prediction_weight": 0.0, "rank": 1.0},
    "one covariance, no generator": {"prediction_weight": 0.0, "neighbourhood": None},
    "one covariance": {"neighbourhood": None},
    "covariance of 2x2 places": {"neighbourhood": 2},
    "covariance of 4x4 places": {"neighbourhood": 4},
    "rank 0.25": {"rank": 0.25},
    "small": {"rank": 0.45, "neighbourhood": 2},
    "prediction alone": {"prediction_weight": 1.0},
    "no predicted variance": {"predict_variance": False},
    "kernels of 3x3": {"kernel_size": 3},
    "global code of 100": {"code": "global", "latent_vec_size": 100},
    "code of 8": {"latent_vec_size": 8},
    "no dropout": {"dropout": 0.0},
    "adversarial": {"wadv": 1},
    "second encoder": {"wenc": 1},
    "adversarial, second encoder": {"wadv": 1, "wenc": 1},
    "global code of 100, latent score": {"code": "global", "latent_vec_size": 100, "wenc": 1, "score": "latent"},
    "global code of 100, both scores": {"code": "global", "latent_vec_size": 100, "wenc": 1, "score": "sum"},
    "mean of the top 1 %": {"top_fraction": 0.01},
    "strides 4, 8, 16": {"strides": (4, 8, 16)},
    "strides 16": {"strides": (16,)},
    "strides 8, 16, 32": {"strides": (8, 16, 32)},
}
"""Arguments of each variant."""


def build_datamodule(root: Path) -> Folder:
    """Return images laid out like MVTec AD, without a validation split."""
    defects = sorted(folder.name for folder in (root / "test").iterdir() if folder.name != "good")
    return Folder(
        name=root.name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{name}" for name in defects],
        mask_dir=[f"ground_truth/{name}" for name in defects],
        train_batch_size=BATCH,
        eval_batch_size=BATCH,
        num_workers=0,
        val_split_mode="none",
    )


class Images:
    """Features of one set's images, for any strides, and its labels and masks."""

    def __init__(self, name: str, root: Path, weights: Path | None, limit: int | None) -> None:
        datamodule = build_datamodule(root)
        datamodule.setup()
        self.module = FeatureGANomaly(strides=(4, 8, 16, 32), visualizer=False)
        self.module.model.space.backbone.load_pretrained(weights)
        train = self._collect(f"{name}: training", datamodule.train_data, limit)
        test = self._collect(f"{name}: test", datamodule.test_data, None)
        self.names, self.train = train[0], train[1]
        self.test, self.labels, self.masks = test[1:]
        self._fitted: dict[Any, tuple[Any, TrainingFeatures]] = {}

    @torch.no_grad()
    def _collect(self, title: str, data: Any, limit: int | None) -> Any:
        names, levels, labels, masks = [], [], [], []
        for index in track(range(min(len(data), limit or len(data))), title):
            item = data[index]
            image = self.module.pre_processor(item.image[None])
            levels.append([level.half() for level in self.module.model.space.features(image)])
            names.append(item.image_path)
            labels.append(int(item.gt_label))
            mask = torch.zeros(256, 256) if item.gt_mask is None else item.gt_mask.squeeze().float()
            masks.append(torch.nn.functional.interpolate(mask[None, None], (256, 256))[0, 0, ::4, ::4].bool())
        joined = [torch.cat(parts) for parts in zip(*levels, strict=True)]
        return names, joined, np.array(labels), torch.stack(masks).numpy()

    def fit(self, module: FeatureGANomaly) -> tuple[TrainingFeatures, list[torch.Tensor]]:
        """Give a model the statistics of these images; return what it learns from, and the test images' levels."""
        settings = module.hparams
        chosen = [(4, 8, 16, 32).index(stride) for stride in settings["strides"]]
        key = (settings["strides"], settings["rank"], settings["neighbourhood"])
        if key not in self._fitted:
            training = TrainingFeatures(module.model.space, self.names, [self.train[place] for place in chosen], True)
            self._fitted[key] = (deepcopy(module.model.space.statistics), training)
        statistics, training = self._fitted[key]
        module.model.space.statistics.load_state_dict(statistics.state_dict())
        return training, [self.test[place] for place in chosen]


def train(module: FeatureGANomaly, training: TrainingFeatures, names: list[str], steps: int) -> None:
    """Train the networks for some steps, as the trainer would."""
    optimiser = module.configure_optimizers()
    module.train()
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order += torch.randperm(len(names)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        target = training.target([names[index] for index in batch], torch.empty(0))
        loss = module.joint_training.join(module.objectives(module.model.losses(target)), module.model.networks)
        optimiser.zero_grad()
        module.joint_training.backward(loss, module.model.networks)
        optimiser.step()
        module.model.update_average()
    module.eval()


@torch.no_grad()
def test(module: FeatureGANomaly, levels: list[torch.Tensor], images: Images) -> dict[str, float]:
    """Return image and pixel AUROC."""
    scores, maps = [], []
    for start in range(0, len(images.labels), 32):
        space = module.model.space
        output = module.model.score(space.whiten([level[start : start + 32] for level in levels], space.statistics))
        scores.append(output.pred_score)
        maps.append(output.anomaly_map[:, 0, ::4, ::4])
    return {
        "image_AUROC": roc_auc_score(images.labels, torch.cat(scores).numpy()),
        "pixel_AUROC": roc_auc_score(images.masks.ravel(), torch.cat(maps).numpy().ravel()),
    }


def run(images: Images, name: str, variant: dict[str, Any], seed: int, steps: int) -> dict[str, Any]:
    """Train and test one variant."""
    seed_everything(seed, verbose=False)
    module = FeatureGANomaly(visualizer=False, **variant)
    training, levels = images.fit(module)
    if module.model.prediction_weight > 0:
        train(module, training, images.names, steps)
        if module.hparams["score"] != "residual":
            names = [images.names[start : start + 64] for start in range(0, len(images.names), 64)]
            module.model.measure_scores(training.target(part, torch.empty(0)) for part in names)
    state = module.model.for_inference().state_dict()
    size = sum(value.numel() for key, value in state.items() if "backbone" not in key) * 2 / 1e6
    return {"variant": name, "seed": seed, "MB_FP16": size, **test(module, levels, images)}


def experiments(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row a run."""
    for name in arguments.sets:
        images = Images(name, arguments.root / SETS[name], arguments.weights, arguments.train_images)
        for variant in arguments.variants:
            settings = VARIANTS[variant]
            seeds = arguments.seeds if settings.get("prediction_weight", 1) else arguments.seeds[:1]
            for seed in seeds:
                row = {"set": name, **run(images, variant, settings, seed, arguments.steps)}
                print(row, flush=True)
                yield row


def main() -> None:
    """Run the ablation and write a row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with mvtec_ad/screw and magnetic_tile")
    parser.add_argument("--weights", type=Path, help="local file with the backbone's weights")
    parser.add_argument("--output", type=Path, required=True, help="CSV file, written after each run")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train-images", type=int, help="train on the first images only")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for row in experiments(arguments):
        rows.append(row)
        pd.DataFrame(rows).to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()

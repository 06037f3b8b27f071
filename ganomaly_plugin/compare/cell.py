# SPDX-License-Identifier: Apache-2.0
"""One cell of a comparison: train a model, score the test images, and keep what the report needs.

Runs in a process of its own, ``python -m ganomaly_plugin.compare.cell FOLDER``, where ``cell.json`` says what to do.
"""

import hashlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.metrics import AUPRO
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.compare.grid import FAILURE, Cell
from ganomaly_plugin.compare.metrics import count_pixels

GALLERY_IMAGES = 200
"""Test images that are kept for the gallery: a draw by seed where there are more."""
GALLERY_SIZE = 96
"""Longer side in pixels of the pictures in the gallery."""
PACKAGES = ("anomalib", "ganomaly-plugin", "lightning", "torch")


def build_model(cell: Cell) -> AnomalibModule:
    """Build the model of a cell, as anomalib's command line does from the same keys.

    Raises:
        ValueError: If a class or an argument does not exist, or a value is refused; the message names the cell.
    """
    model: AnomalibModule = _build(cell, "model", AnomalibModule, cell.model_config, {"visualizer": False})
    return model


def build_datamodule(cell: Cell) -> AnomalibDataModule:
    """Build the datamodule of a cell, as anomalib's command line does from the same keys.

    Raises:
        ValueError: If a class or an argument does not exist, or a value is refused; the message names the cell.
    """
    datamodule: AnomalibDataModule = _build(cell, "data", AnomalibDataModule, cell.data_config, {"seed": cell.seed})
    return datamodule


def _build(cell: Cell, key: str, base: type, config: dict[str, Any], defaults: dict[str, Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=base, required=True)
    config = deepcopy(config)  # The parser changes what it is given.
    config["init_args"] = defaults | config["init_args"]
    try:
        return parser.instantiate_classes(parser.parse_object({key: config}))[key]
    except Exception as error:
        msg = f"{cell.title}: {' '.join(str(error).split())}"
        raise ValueError(msg) from error


def build_engine(root: str, callback: Callback, trainer: dict[str, Any]) -> Engine:
    """Build an engine for one quiet training.

    Args:
        root: Where it keeps its checkpoints.
        callback: Who watches.
        trainer: Further arguments of the trainer.
    """
    return Engine(
        default_root_dir=root,
        callbacks=[callback],
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )


def check_data(cell: Cell, datamodule: AnomalibDataModule) -> None:
    """Make the data ready, and see whether they serve what is to be measured.

    Raises:
        ValueError: If the test images are all normal or all anomalous, or have no masks where a metric needs them.
    """
    datamodule.prepare_data()
    datamodule.setup()
    samples = datamodule.test_data.samples
    for label, kind in ((0, "normal"), (1, "anomalous")):
        if not (samples.label_index == label).any():
            msg = f"{cell.dataset} ({cell.category}) has no {kind} test image, so nothing can be measured: add some."
            raise ValueError(msg)
    pixels = [metric for metric in cell.metrics if metric.startswith("pixel")]
    if pixels and not ("mask_path" in samples and samples.mask_path.astype(bool).any()):
        msg = f"{cell.dataset} ({cell.category}) has no masks for {', '.join(pixels)}: leave these out of metrics."
        raise ValueError(msg)


def run(cell: Cell, folder: Path) -> None:
    """Train and test, and write the results into the folder.

    ``result.json``, ``scores.npz`` and ``gallery.npz``; of a timed cell its exports and ``model.ckpt`` as well.
    """
    seed_everything(cell.seed, workers=True, verbose=False)
    model, datamodule = build_model(cell), build_datamodule(cell)
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as checkpoints:
        engine = build_engine(checkpoints, recorder, cell.trainer)
        start = time.perf_counter()
        engine.fit(model, datamodule=datamodule)
        fit_seconds = time.perf_counter() - start
        peak = _peak_megabytes()
        if cell.openvino:
            engine.trainer.save_checkpoint(folder / "model.ckpt")
        start = time.perf_counter()
        engine.test(model, datamodule=datamodule, verbose=False)
        test_seconds = time.perf_counter() - start

    scores, labels = torch.cat(recorder.scores).double().numpy(), torch.cat(recorder.labels).double().numpy()
    arrays: dict[str, Any] = {"scores": scores, "labels": labels}
    measures = image_metrics(scores, labels)
    if _wants_pixels(cell, recorder):
        maps, masks = torch.cat(recorder.maps), torch.cat(recorder.masks)
        measures |= pixel_metrics(maps, masks)
        arrays |= count_pixels(maps.numpy(), masks.numpy())._asdict()
    np.savez_compressed(folder / "scores.npz", **arrays)
    np.savez_compressed(folder / "gallery.npz", **gallery(recorder, cell.seed))
    result = {
        "metrics": {name: measures[name] for name in cell.metrics or measures},
        "data": {part: content_hash(getattr(datamodule, f"{part}_data")) for part in ("train", "test")},
        "images": {part: len(getattr(datamodule, f"{part}_data")) for part in ("train", "test")},
        "fit_seconds": fit_seconds,
        "test_seconds": test_seconds,
        "peak_megabytes": peak,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "losses": recorder.losses,
        "exports": export(model, datamodule, folder / "exports", cell.openvino) if cell.openvino else {},
        "input_size": list(model.input_size or (256, 256)),
        "versions": {name: version(name) for name in PACKAGES},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


class Recorder(Callback):
    """Keeps what the model gives for each test image before any post-processing, and the losses of each epoch.

    The engine calls it before the model's own callbacks, which normalise the scores.
    """

    def __init__(self) -> None:
        self.scores: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.maps: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.reconstructions: list[torch.Tensor] = []
        self.losses: dict[str, list[float]] = {}

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the images as they are before any pre-processing."""
        del trainer, pl_module, batch_idx, dataloader_idx
        self.images.append(_thumbnails(_tensor(batch.image)))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch."""
        del trainer, batch_idx, dataloader_idx
        maps, scores = outputs.anomaly_map, outputs.pred_score
        if scores is None:  # Some models leave this to anomalib's post-processor, which does the same.
            scores = maps.flatten(1).amax(1)
        self.scores.append(scores.detach().flatten().float().cpu())
        self.labels.append(_tensor(batch.gt_label).cpu())
        if maps is not None:
            self.maps.append(maps.detach().float().cpu().view(len(maps), *maps.shape[-2:]))
        if batch.gt_mask is not None:
            self.masks.append(_tensor(batch.gt_mask).cpu().bool())
        reconstruct: Callable[[Any], torch.Tensor] | None = getattr(pl_module.model, "reconstruct", None)
        if reconstruct is not None:
            with torch.no_grad():
                self.reconstructions.append(_thumbnails(reconstruct(batch.image)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's losses."""
        del pl_module
        for name, value in trainer.callback_metrics.items():
            if "loss" in name:
                self.losses.setdefault(name, []).append(float(value))


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return scikit-learn's figures of raw scores."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        "image_AUROC": float(roc_auc_score(labels, scores)),
        "image_AP": float(average_precision_score(labels, scores)),
        "image_F1Max": float((2 * precision * recall / (precision + recall).clip(min=1e-12)).max()),
    }


def pixel_metrics(maps: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    """Return scikit-learn's area under the ROC curve and anomalib's under the per-region overlap, of raw maps."""
    overlap = AUPRO(fields=["anomaly_map", "gt_mask"])
    overlap.update(ImageBatch(image=torch.zeros(len(maps), 3, *maps.shape[1:]), anomaly_map=maps, gt_mask=masks))
    return {
        "pixel_AUROC": float(roc_auc_score(masks.flatten(), maps.flatten())),
        "pixel_AUPRO": float(overlap.compute()),
    }


def _wants_pixels(cell: Cell, recorder: Recorder) -> bool:
    chosen = not cell.metrics or any(metric.startswith("pixel") for metric in cell.metrics)
    return chosen and bool(recorder.maps) and any(mask.any() for mask in recorder.masks)


def gallery(recorder: Recorder, seed: int) -> dict[str, Any]:
    """Return pictures of some test images, as 8-bit values, and which they are."""
    count = sum(len(scores) for scores in recorder.scores)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:GALLERY_IMAGES])
    pictures: dict[str, Any] = {"chosen": chosen, "images": _bytes(torch.cat(recorder.images)[chosen])}
    if recorder.reconstructions:
        pictures["reconstructions"] = _bytes(torch.cat(recorder.reconstructions)[chosen])
    if recorder.maps:
        maps = _thumbnails(torch.cat(recorder.maps)[chosen].unsqueeze(1))
        low, high = np.percentile(maps, [1, 99.9])
        pictures["maps"] = _bytes((maps - low) / max(high - low, 1e-9))
    if recorder.masks:
        pictures["masks"] = _bytes(_thumbnails(torch.cat(recorder.masks)[chosen].unsqueeze(1).float()))
    return pictures


def content_hash(dataset: AnomalibDataset) -> str:
    """Return a hash of the images and labels of a dataset, before any augmentation, whatever their order."""
    augmentations, dataset.augmentations = dataset.augmentations, None
    items: Any = (dataset[index] for index in range(len(dataset)))
    digests = sorted(
        hashlib.sha256(item.image.numpy().tobytes() + bytes([int(item.gt_label)])).digest() for item in items
    )
    dataset.augmentations = augmentations
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def export(model: AnomalibModule, datamodule: AnomalibDataModule, root: Path, forms: tuple[str, ...]) -> dict[str, Any]:
    """Export for the timings, and return each form's file and megabytes, or the reason why there is none."""
    found: dict[str, Any] = {}
    for form in ("torch", *forms):
        try:
            if form == "torch":
                path = model.to_torch(root / form)
                size = path.stat().st_size
            else:
                kind = None if form == "FP32" else CompressionType[form]
                path = model.to_openvino(root / form, compression_type=kind, datamodule=datamodule)
                size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        except Exception as error:  # The accuracy stands whether or not a form can be exported.
            found[form] = {
                "reason": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            }
        else:
            found[form] = {"path": str(path.relative_to(root.parent)), "megabytes": size / 1e6}
    return found


def _peak_megabytes() -> float:
    """Return the most memory that this process had so far: of the accelerator if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _tensor(value: Any) -> torch.Tensor:
    """Assure the type checker that a field of a batch is there."""
    tensor: torch.Tensor = value
    return tensor


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Shrink images ``(B, C, H, W)`` to the gallery's size."""
    images = images.detach().float().cpu()
    scale = GALLERY_SIZE / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _bytes(images: torch.Tensor) -> np.ndarray:
    """Turn images ``(B, C, H, W)`` in [0, 1] into bytes ``(B, H, W, C)``."""
    array: np.ndarray = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return array


def _end_with_parent() -> None:
    """End this process as soon as the one that holds its standard input is gone, even by a kill."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    warnings.filterwarnings("ignore")
    target = Path(sys.argv[1])
    try:
        run(Cell.from_json((target / "cell.json").read_text()), target)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        (target / FAILURE).write_text(f"{reason}\n")
        raise

# SPDX-License-Identifier: Apache-2.0
"""One run of a comparison: train a model, score the test images, and keep what the report needs.

Each has a process of its own, ``python -m ganomaly_plugin.compare.run FOLDER``, where ``run.json`` says what to do.
"""

import hashlib
import inspect
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin import image_reader
from ganomaly_plugin.compare.grid import FAILURE, PROGRESS, Run
from ganomaly_plugin.compare.metrics import Array, count_pixels, image_metrics, pixel_metrics
from ganomaly_plugin.compare.record import write_json
from ganomaly_plugin.progress_lines import TrainerProgress

GALLERY_IMAGES = 200
"""Test images that are kept for the gallery, at most; chosen by the seed."""
GALLERY_SIZE = 96
"""Longer side in pixels of the pictures in the gallery."""
PACKAGES = ("anomalib", "ganomaly-plugin", "lightning", "torch")
SECONDS_BETWEEN_TEXTS = 1.0
"""How often a training says what it is at, at most."""

try:
    import resource
except ModuleNotFoundError:  # On Windows, which does not say how much memory a process had.
    resource = None  # type: ignore[assignment]


def build_model(run: Run) -> AnomalibModule:
    """Build the model of a run, as anomalib's command line does from the same keys.

    Raises:
        ValueError: If a class or an argument does not exist, or a value is refused; the message names the run.
    """
    model: AnomalibModule = _build(run, "model", AnomalibModule, run.model_config, {"visualizer": False})
    return model


def build_datamodule(run: Run) -> AnomalibDataModule:
    """Build the datamodule of a run, as anomalib's command line does from the same keys.

    Raises:
        ValueError: If a class or an argument does not exist, or a value is refused; the message names the run.
    """
    image_reader.install()  # All models of a comparison see the same pixels.
    datamodule: AnomalibDataModule = _build(run, "data", AnomalibDataModule, run.data_config, {"seed": run.seed})
    return datamodule


def _build(run: Run, key: str, base: type, config: dict[str, Any], defaults: dict[str, Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=base, required=True)
    config = deepcopy(config)  # The parser changes what it is given.
    config["init_args"] = defaults | config["init_args"]
    try:
        return parser.instantiate_classes(parser.parse_object({key: config}))[key]
    except Exception as error:
        msg = f"{run.title}: {' '.join(str(error).split())}"
        raise ValueError(msg) from error


def build_engine(root: str | Path, callbacks: list[Callback], trainer: dict[str, Any]) -> Engine:
    """Build an engine for one training without output.

    Args:
        root: Where it keeps its checkpoints.
        callbacks: Callbacks besides the model's own.
        trainer: Further arguments of the trainer, which replace those set here.
    """
    quiet = {"devices": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Engine(default_root_dir=root, callbacks=callbacks, **quiet | trainer)


def check_trainer(run: Run) -> None:
    """Check the names of the trainer's arguments, and the limits of the training.

    Raises:
        ValueError: If there is no such argument, or Lightning refuses a limit.
    """
    known = inspect.signature(Trainer).parameters.keys() - {"callbacks", "default_root_dir"}
    unknown = sorted(run.trainer.keys() - known)
    if unknown:
        msg = f"{run.title}: trainer has no {', '.join(unknown)}: it takes {', '.join(sorted(known))}."
        raise ValueError(msg)
    limits = {name: value for name, value in run.trainer.items() if name.startswith(("limit_", "max_", "min_"))}
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, fail_untyped=False)
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # Lightning would list the machine's accelerators for each model.
    try:
        parser.parse_object(limits)
        Trainer(accelerator="cpu", devices=1, **quiet, **limits)
    except Exception as error:  # Lightning raises errors of many types.
        msg = f"{run.title}: the trainer refuses {limits}: {' '.join(str(error).split())}"
        raise ValueError(msg) from error
    finally:
        logging.disable(disabled)


def check_data(run: Run, datamodule: AnomalibDataModule) -> None:
    """Make the data ready, and check that they allow what is to be computed.

    Raises:
        ValueError: If the test images are all normal or all anomalous, or have no masks where a metric needs them.
    """
    datamodule.prepare_data()
    datamodule.setup()
    samples = datamodule.test_data.samples
    for label, kind in ((0, "normal"), (1, "anomalous")):
        if not (samples.label_index == label).any():
            msg = f"{run.dataset} ({run.category}) has no {kind} test image, so no metric can be computed: add some."
            raise ValueError(msg)
    pixels = [metric for metric in run.metrics if metric.startswith("pixel")]
    if pixels and not ("mask_path" in samples and samples.mask_path.astype(bool).any()):
        msg = f"{run.dataset} ({run.category}) has no masks for {', '.join(pixels)}: leave these out of metrics."
        raise ValueError(msg)


def train_and_test(run: Run, folder: Path) -> None:
    """Train and test, and write the results into the folder.

    ``result.json``, ``scores.npz`` and ``gallery.npz``; of a timed run its exports and ``model.ckpt`` as well.
    """
    seed_everything(run.seed, workers=True, verbose=False)
    model, datamodule = build_model(run), build_datamodule(run)
    recorder = Recorder(run.every_epoch)
    progress = ProgressFile(folder / PROGRESS)
    callbacks = [recorder, progress]
    with tempfile.TemporaryDirectory() as checkpoints:
        engine = build_engine(checkpoints, callbacks, run.trainer)
        start = time.perf_counter()
        engine.fit(model, datamodule=datamodule)
        fit_seconds = time.perf_counter() - start
        peaks = peak_memory(engine.trainer.strategy.root_device)
        if run.openvino:
            engine.trainer.save_checkpoint(folder / "model.ckpt")
        start = time.perf_counter()
        engine.test(model, datamodule=datamodule, verbose=False)
        test_seconds = time.perf_counter() - start

    progress.write("metrics")
    scores, labels = recorder.joined("scores").double().numpy(), recorder.joined("labels").double().numpy()
    train, test = (hash_images(getattr(datamodule, f"{part}_data")) for part in ("train", "test"))
    if not np.array_equal(test.labels[: len(labels)], labels):
        msg = f"{run.title}: the test images come in another order than the dataset's, so that models cannot be paired."
        raise ValueError(msg)
    arrays: dict[str, Any] = {"scores": scores, "labels": labels, "images": test.images[: len(labels)]}
    metrics = image_metrics(scores, labels)
    if _wants_pixels(run, recorder):
        maps, masks = recorder.joined("maps"), recorder.joined("masks")
        metrics |= pixel_metrics(maps, masks)
        arrays |= count_pixels(maps.numpy(), masks.numpy())._asdict()
    np.savez_compressed(folder / "scores.npz", **arrays)
    np.savez_compressed(folder / "gallery.npz", **gallery(recorder, run.seed))
    if run.openvino:
        progress.write(f"export to torch, {', '.join(run.openvino)}")
    record = {
        "metrics": {name: metrics[name] for name in run.metrics or metrics},
        # The last epoch's is the test's own, after what the model does when training ends.
        "epochs": [*recorder.epochs, metrics["image_AUROC"]] if run.every_epoch else [],
        "data": {"train": train.content, "test": test.content},
        "images": {"train": len(train.images), "test": len(test.images)},
        "fit_seconds": fit_seconds - recorder.scoring_seconds,
        "test_seconds": test_seconds,
        **peaks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "losses": recorder.losses,
        "exports": export(model, datamodule, folder / "exports", run.openvino) if run.openvino else {},
        "input_size": list(model.input_size or (256, 256)),
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_json(folder / "result.json", record)


class Recorder(Callback):
    """Keeps what the model gives for each test image before any post-processing, and the losses of each epoch.

    The engine calls it before the model's own callbacks, which normalise the scores.

    Args:
        every_epoch: Whether to score the test images after every epoch but the last, too.
    """

    def __init__(self, every_epoch: bool) -> None:
        self.every_epoch = every_epoch
        self.epochs: list[float] = []
        self.scoring_seconds = 0.0
        self.losses: dict[str, list[float]] = {}
        self.batches: dict[str, list[torch.Tensor]] = {}

    def joined(self, name: str) -> torch.Tensor:
        """Return one kind of what was kept, of all test images."""
        return torch.cat(self.batches[name])

    def on_test_batch_start(self, _trainer: Trainer, _module: LightningModule, batch: Any, *_: Any) -> None:
        """Keep the images as they are before any pre-processing."""
        self.batches.setdefault("images", []).append(_thumbnails(batch.image))

    def on_test_batch_end(self, _trainer: Trainer, _module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Keep a batch."""
        kept = {"scores": raw_scores(outputs), "labels": batch.gt_label.cpu()}
        if (maps := outputs.anomaly_map) is not None:
            kept["maps"] = maps.detach().float().cpu().view(len(maps), *maps.shape[-2:])
        if batch.gt_mask is not None:
            kept["masks"] = batch.gt_mask.cpu().bool()
        if (reconstruction := getattr(outputs, "reconstruction", None)) is not None:
            kept["reconstructions"] = _thumbnails(reconstruction)
        for name, values in kept.items():
            self.batches.setdefault(name, []).append(values)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the test images by the epoch before, when the model's own hooks have run."""
        if self.every_epoch and trainer.current_epoch > 0:
            start = time.perf_counter()
            self.epochs.append(auroc_of_test_images(trainer, pl_module))
            self.scoring_seconds += time.perf_counter() - start

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Keep the epoch's losses."""
        for name, value in trainer.callback_metrics.items():
            if "loss" in name:
                self.losses.setdefault(name, []).append(float(value))


class ProgressFile(TrainerProgress):
    """Says in a file what the training is at.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.written = 0.0

    def write(self, text: str) -> None:
        """Say what comes now, however short ago the last text was."""
        self.file.write_text(text)
        self.written = time.monotonic()

    def say(self, text: str) -> None:
        """Say what the trainer is at, unless the last text has just been written."""
        if time.monotonic() - self.written >= SECONDS_BETWEEN_TEXTS:
            self.write(text)


def raw_scores(outputs: Any) -> torch.Tensor:
    """Return the scores ``(B,)`` of a model's test step, before any post-processing."""
    scores = outputs.pred_score
    if scores is None:  # Some models leave this to anomalib's post-processor, which does the same.
        scores = outputs.anomaly_map.flatten(1).amax(1)
    result: torch.Tensor = scores.detach().flatten().float().cpu()
    return result


@torch.no_grad()
def auroc_of_test_images(trainer: Any, model: Any) -> float:
    """Return the image AUROC of raw scores in the middle of a training, which goes on as if nothing had happened."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    scores, labels = [], []
    with torch.random.fork_rng(), trainer.precision_plugin.forward_context():
        for index, batch in enumerate(trainer.datamodule.test_dataloader()):
            batch.image = batch.image.to(model.device)
            labels.append(batch.gt_label)
            if model.pre_processor:
                model.pre_processor.on_test_batch_start(trainer, model, batch, index)
            scores.append(raw_scores(model.test_step(batch, index)))
    for module, training in modes:
        module.training = training
    return float(roc_auc_score(torch.cat(labels), torch.cat(scores).double()))


def _wants_pixels(run: Run, recorder: Recorder) -> bool:
    chosen = not run.metrics or any(metric.startswith("pixel") for metric in run.metrics)
    return chosen and "maps" in recorder.batches and any(mask.any() for mask in recorder.batches.get("masks", []))


def gallery(recorder: Recorder, seed: int) -> dict[str, Any]:
    """Return pictures of some test images, as 8-bit values, and which they are."""
    count = len(recorder.joined("scores"))
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:GALLERY_IMAGES])
    pictures: dict[str, Any] = {"chosen": chosen}
    for name in ("images", "reconstructions"):
        if name in recorder.batches:
            pictures[name] = _bytes(recorder.joined(name)[chosen])
    if "maps" in recorder.batches:
        maps = _thumbnails(recorder.joined("maps")[chosen].unsqueeze(1))
        low, high = np.percentile(maps, [1, 99.9])
        pictures["maps"] = _bytes((maps - low) / max(high - low, 1e-9))
    if "masks" in recorder.batches:
        pictures["masks"] = _bytes(_thumbnails(recorder.joined("masks")[chosen].unsqueeze(1).float()))
    return pictures


class Hashes(NamedTuple):
    """Hashes of a dataset, before any augmentation.

    Attributes:
        images: Of each image ``(N,)``, whatever its label.
        labels: The images' labels ``(N,)``, 1 for anomalous.
        content: Of all images and labels, whatever their order.
    """

    images: npt.NDArray[np.uint64]
    labels: Array
    content: str


def hash_images(dataset: AnomalibDataset) -> Hashes:
    """Hash the images and labels of a dataset."""
    augmentations, dataset.augmentations = dataset.augmentations, None
    images, labels, digests = [], [], []
    for index in range(len(dataset)):
        item: Any = dataset[index]
        digest = hashlib.sha256(item.image.numpy().tobytes())
        images.append(digest.digest()[:8])
        labels.append(float(item.gt_label))
        digest.update(bytes([int(item.gt_label)]))
        digests.append(digest.digest())
    dataset.augmentations = augmentations
    content = hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]
    return Hashes(np.frombuffer(b"".join(images), dtype=np.uint64), np.array(labels), content)


def export(
    model: AnomalibModule, datamodule: AnomalibDataModule, root: Path, formats: tuple[str, ...]
) -> dict[str, Any]:
    """Export for the timings, and return each format's file and megabytes, or the reason why there is none."""
    found: dict[str, Any] = {}
    for name in ("torch", *formats):
        try:
            if name == "torch":
                path = model.to_torch(root / name)
                size = path.stat().st_size
            else:
                kind = None if name == "FP32" else CompressionType[name]
                path = model.to_openvino(root / name, compression_type=kind, datamodule=datamodule)
                size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        except Exception as error:  # The accuracy stands whether or not the model can be exported.
            found[name] = {"reason": f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"}
        else:
            found[name] = {"path": str(path.relative_to(root.parent)), "megabytes": size / 1e6}
    return found


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """Return the most megabytes that this process had so far: its own, and those on the GPU where it trained on one."""
    process = None
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes.
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    gpu = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {"peak_megabytes": process, "peak_gpu_megabytes": gpu}


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
        train_and_test(Run.from_json((target / "run.json").read_text()), target)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        (target / FAILURE).write_text(f"{reason}\n")
        raise

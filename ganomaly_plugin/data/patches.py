# SPDX-License-Identifier: Apache-2.0
"""Large images as overlapping patches, the way the paper's baggage set was made, and the way back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rich.progress import track
from sklearn.metrics import roc_auc_score

from ganomaly_plugin.data.class_folder import ClassFolder
from ganomaly_plugin.data.class_names import ClassName
from ganomaly_plugin.data.datamodule import LabelledImages
from ganomaly_plugin.data.image_reader import read_image, read_mask

BOX_COLUMNS = ["image", "x_min", "y_min", "x_max", "y_max"]


class Patches(ClassFolder):
    """Overlapping square patches of large images, such as X-ray scans of whole bags.

    The images lie as in :class:`~ganomaly_plugin.data.class_folder.ClassFolder`; the normal class is ``0.normal`` by
    default, on the official splits. anomalib's tiler cuts each image, enlarged by less than a stride so that patches
    cover it to the border. Patches of an anomalous image are anomalous where its annotation says so:

    * a mask ``<root>/ground_truth/<class>/<name of the image>.png``, anything but black being anomalous, or
    * rows of ``<root>/boxes.csv``, with the columns ``image`` (path below the root), ``x_min``, ``y_min``, ``x_max``
      and ``y_max`` in pixels, the maxima excluded.

    Patches of an anomalous image without an annotation are all anomalous. All patches stay in memory, 12 kB each at 64
    pixels.

    Args:
        root: Folder that holds ``train`` and ``test``.
        patch_size: Side of a patch in pixels.
        stride: Pixels from one patch to the next, at most ``patch_size``.
        anomalous_fraction: Fraction of a patch, in (0, 1], that its image's annotation must cover at least to make it
            anomalous.
        normal_class: Name or number of the normal class.
        **kwargs: Further arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Raises:
        FileNotFoundError: If ``root`` does not hold these folders with images in them.
        ValueError: If an argument is out of its range.
    """

    protocols = ("normal",)

    def __init__(
        self,
        root: Path | str,
        patch_size: int = 64,
        stride: int = 32,
        anomalous_fraction: float = 0.05,
        normal_class: ClassName = "0.normal",
        **kwargs: Any,
    ) -> None:
        if not 0 < stride <= patch_size:
            msg = f"stride is {stride}, but must lie between 1 and patch_size, which is {patch_size}."
            raise ValueError(msg)
        if not 0 < anomalous_fraction <= 1:
            msg = f"anomalous_fraction is {anomalous_fraction}, but must lie in (0, 1]."
            raise ValueError(msg)
        super().__init__(root, one_vs_rest="normal", normal_class=normal_class, **kwargs)
        self.tiler = Tiler(patch_size, stride, mode=ImageUpscaleMode.INTERPOLATION)
        self.anomalous_fraction = anomalous_fraction

    def load(self) -> LabelledImages:
        """Cut all images.

        Raises:
            FileNotFoundError: If a folder or a box file's entry has no image.
            ValueError: If an image is smaller than a patch, a mask has another size than its image, or the box file
                lacks a column or holds an empty box.
        """
        paths, labels, is_train = self.find_files()
        boxes = self._read_boxes(paths)
        patches, patch_labels, names = [], [], []
        for path, label in zip(track(paths, "Cutting images", transient=True), labels, strict=True):
            pixels = torch.as_tensor(read_image(path, as_tensor=True))
            tiles = self._cut(pixels, path)
            mask = None if label == self.chosen_class else self._read_annotation(path, pixels.shape[-2:], boxes)
            is_anomalous = np.full(len(tiles), True)
            if mask is not None:
                is_anomalous = self._cut(mask, path).mean((1, 2, 3)).numpy() >= self.anomalous_fraction
            patches.append((tiles * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
            patch_labels.append(np.where(is_anomalous, label, self.chosen_class))
            names.append(_patch_names(path, len(tiles)))
        counts = [len(group) for group in names]
        return LabelledImages(
            paths=[name for group in names for name in group],
            labels=np.concatenate(patch_labels),
            is_train=np.repeat(is_train, counts),
            images=np.concatenate(patches),
        )

    def assemble(self, predictions: Sequence[ImageBatch]) -> list[ImageItem]:
        """Put the predictions of patches together, one item a full image.

        Args:
            predictions: Batches with all patches of each image, in any order.

        Returns:
            Items with the full image, its path, the label of the folder that it lies in, the highest score of its
            patches (``pred_score``, and ``pred_label`` where the patches have one), and a map, in which overlapping
            patches are averaged.

        Raises:
            ValueError: If an image's patches are not all there.
        """
        rows: dict[Path, dict[str, tuple[ImageBatch, int]]] = {}
        for batch in predictions:
            for index, name in enumerate(batch.image_path or []):
                rows.setdefault(Path(name).parent, {})[name] = (batch, index)
        return [self._assemble_one(path, rows[path]) for path in sorted(rows)]

    def _assemble_one(self, path: Path, patches: dict[str, tuple[ImageBatch, int]]) -> ImageItem:
        pixels = torch.as_tensor(read_image(path, as_tensor=True))
        names = _patch_names(path, len(self._cut(pixels, path)))  # Tells the tiler the image's size as well.
        missing = [name for name in names if name not in patches]
        if missing:
            msg = (
                f"{len(missing)} of {len(names)} patches of '{path}' have no prediction: predict the whole test set, "
                "without max_test_images and with a val_split_mode other than 'from_test'."
            )
            raise ValueError(msg)
        places: list[Any] = [patches[name] for name in names]
        item = ImageItem(
            image=pixels,
            image_path=str(path),
            gt_label=torch.tensor(path.parent.name != self.class_names[self.chosen_class]),
            pred_score=torch.stack([batch.pred_score[index].cpu() for batch, index in places]).max(),
        )
        if places[0][0].pred_label is not None:
            item.pred_label = torch.stack([batch.pred_label[index].cpu() for batch, index in places]).any()
        if places[0][0].anomaly_map is not None:
            maps = torch.stack([batch.anomaly_map[index].cpu() for batch, index in places])
            item.anomaly_map = self.tiler.untile(maps.unsqueeze(1)).squeeze(1)[0]
        return item

    def _cut(self, image: torch.Tensor, path: Path) -> torch.Tensor:
        """Return the patches of an image ``(C, H, W)``, row by row, ``(N, C, patch_size, patch_size)``."""
        side = self.tiler.tile_size_h
        if min(image.shape[-2:]) < side:
            msg = (
                f"'{path}' has {tuple(image.shape[-2:])} pixels, less than a patch of {side}: choose a smaller "
                "patch_size, or take the image out."
            )
            raise ValueError(msg)
        return self.tiler.tile(image)

    def _read_boxes(self, paths: list[Path]) -> pd.DataFrame | None:
        file = self.root / "boxes.csv"
        if not file.exists():
            return None
        boxes = pd.read_csv(file)
        if not set(BOX_COLUMNS) <= set(boxes.columns):
            msg = f"'{file}' has the columns {list(boxes.columns)}, but must have {BOX_COLUMNS}."
            raise ValueError(msg)
        unknown = set(boxes.image) - {path.relative_to(self.root).as_posix() for path in paths}
        if unknown:
            msg = f"'{file}' names images that are not there: {', '.join(sorted(unknown)[:5])}. Correct the paths."
            raise FileNotFoundError(msg)
        low, high = boxes[["x_min", "y_min"]].to_numpy(), boxes[["x_max", "y_max"]].to_numpy()
        wrong = ~((low >= 0) & (low < high)).all(1)
        if wrong.any():
            row = boxes.loc[wrong, BOX_COLUMNS].iloc[0].to_dict()
            msg = f"'{file}' holds a box without a pixel, {row}: corners must satisfy 0 <= min < max."
            raise ValueError(msg)
        return boxes

    def _read_annotation(self, path: Path, size: torch.Size, boxes: pd.DataFrame | None) -> torch.Tensor | None:
        """Return the anomalous pixels of an image as ones, ``(1, H, W)``, or ``None`` where nothing is annotated."""
        mask_path = self.root / "ground_truth" / path.parent.name / f"{path.stem}.png"
        if mask_path.exists():
            mask = torch.as_tensor(read_mask(mask_path, as_tensor=True)).float().unsqueeze(0)
            if mask.shape[1:] != size:
                msg = f"'{mask_path}' has {tuple(mask.shape[1:])} pixels, but its image {tuple(size)}: make them equal."
                raise ValueError(msg)
            return mask
        if boxes is None:
            return None
        chosen = boxes.loc[boxes.image == path.relative_to(self.root).as_posix(), BOX_COLUMNS[1:]]
        if chosen.empty:
            return None
        mask = torch.zeros(1, *size)
        for x_min, y_min, x_max, y_max in chosen.to_numpy(dtype=int):
            mask[:, y_min:y_max, x_min:x_max] = 1
        return mask


class FullImages(Callback):
    """Evaluates a test on :class:`Patches` by full images.

    After the test, it logs ``full_image_AUROC`` of the highest score in each image, and saves a picture of each image
    with its map.

    Args:
        output_dir: Folder of the pictures; by default ``full_images`` in the trainer's.
    """

    def __init__(self, output_dir: Path | str | None = None) -> None:
        self.output_dir = output_dir
        self._batches: list[ImageBatch] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the datamodule and forget an earlier test.

        Raises:
            TypeError: If the datamodule is not :class:`Patches`.
        """
        del pl_module
        datamodule: Any = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, Patches):
            msg = f"FullImages puts patches together, but the datamodule is {type(datamodule).__name__}: use Patches."
            raise TypeError(msg)
        self._batches = []

    def on_test_batch_end(self, _trainer: Trainer, _module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep a batch of predictions."""
        self._batches.append(outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the patches together, log and draw."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        items = datamodule.assemble(self._batches)
        labels = [bool(item.gt_label) for item in items]
        if 0 < sum(labels) < len(labels):
            pl_module.log("full_image_AUROC", float(roc_auc_score(labels, [float(item.pred_score) for item in items])))
        visualizer = ImageVisualizer()
        folder = Path(self.output_dir or Path(trainer.default_root_dir) / "full_images")
        for item in items:
            picture = visualizer.visualize(item)
            assert isinstance(picture, Image.Image)  # noqa: S101  (one item makes one picture)
            picture.save(generate_output_filename(item.image_path, folder).with_suffix(".png"))


def _patch_names(path: Path, count: int) -> list[str]:
    """Name the patches of an image so that their names sort in the tiler's order, row by row."""
    return [f"{path}/{number:06}.png" for number in range(count)]

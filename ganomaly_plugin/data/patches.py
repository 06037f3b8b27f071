# SPDX-License-Identifier: Apache-2.0
"""Large images as overlapping patches, the way the paper's baggage set was made, and the way back."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler, compute_new_image_size, upscale_image
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rich.progress import track
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2.functional import to_dtype

from ganomaly_plugin.data.class_folder import ClassFolder
from ganomaly_plugin.data.class_names import ClassName
from ganomaly_plugin.data.datamodule import LabelledImages
from ganomaly_plugin.data.named_dataset import NamedDataset
from ganomaly_plugin.image_file import decode, read_size, to_rgb
from ganomaly_plugin.image_reader import read_image, read_mask
from ganomaly_plugin.picture_files import PictureFiles

BOX_COLUMNS = ["image", "x_min", "y_min", "x_max", "y_max"]

CACHE_BYTES = 2**30
"""Decoded images that stay in memory at most, in each process."""


class Cutter:
    """Cuts single patches out of image files. The images that were used last stay decoded, in their own depth.

    Args:
        side: Side of a patch in pixels.
        stride: Pixels from one patch to the next.
    """

    def __init__(self, side: int, stride: int) -> None:
        self.side = side
        self.stride = stride
        self._decoded: OrderedDict[Path, npt.NDArray[Any]] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Cutter":
        """Share the decoded images: anomalib makes a deep copy of the data set for every subset."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded images out of what goes to another process."""
        return self.__dict__ | {"_decoded": OrderedDict()}

    def count(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches that cover an image of some height and width to the border."""
        rows, columns = ((length - self.side) // self.stride + 1 for length in self._enlarged(size))
        return rows, columns

    def cut(self, path: Path, number: int) -> npt.NDArray[Any]:
        """Return a patch, uint8 ``(side, side, 3)``, or float32 ``(side, side, 1)`` in [0, 1] of deep grey.

        Args:
            path: File of the image.
            number: Number of the patch, row by row.
        """
        pixels = self._decode(path)
        size = pixels.shape[:2]
        places = divmod(number, self.count(size)[1])
        rows, columns = (
            _enlarge(old, new)[place * self.stride : place * self.stride + self.side]
            for old, new, place in zip(size, self._enlarged(size), places, strict=True)
        )
        return pixels[rows[:, np.newaxis], columns]

    def _enlarged(self, size: tuple[int, ...]) -> tuple[int, int]:
        height, width = compute_new_image_size(size, (self.side, self.side), (self.stride, self.stride))
        return height, width

    def _decode(self, path: Path) -> npt.NDArray[Any]:
        if path not in self._decoded:
            pixels = decode(path, to_rgb)
            # The channels of deep images are equal.
            self._decoded[path] = pixels if pixels.dtype == np.uint8 else pixels[..., :1].astype(np.float32)
            while len(self._decoded) > 1 and sum(image.nbytes for image in self._decoded.values()) > CACHE_BYTES:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(path)
        return self._decoded[path]


@cache
def _enlarge(length: int, enlarged: int) -> npt.NDArray[np.int64]:
    """Return which pixel of a line each pixel of the enlarged line shows, as anomalib's tiler enlarges."""
    line = torch.arange(length, dtype=torch.float32).view(1, 1, 1, length)
    shown = upscale_image(line, (1, enlarged), ImageUpscaleMode.INTERPOLATION)
    return shown.flatten().long().numpy()


class PatchDataset(NamedDataset):
    """Patches that are cut when they are read. The name of a patch is that of its image's file and its number.

    Args:
        samples: The columns of :class:`~ganomaly_plugin.data.named_dataset.NamedDataset`.
        cutter: Cuts the patches.
    """

    def __init__(self, samples: pd.DataFrame, cutter: Cutter) -> None:
        super().__init__(samples)
        self.cutter = cutter

    def read(self, rows: pd.DataFrame) -> torch.Tensor:
        """Return patches in colour."""
        patches = [torch.from_numpy(self._cut(name)).permute(2, 0, 1) for name in rows.image_path]
        return torch.stack([to_dtype(patch, torch.float32, scale=True).expand(3, -1, -1) for patch in patches])

    def to_picture(self, row: Any) -> Image.Image:
        """Return a patch with 8 bits a channel, or in deep grey with 16."""
        pixels = self._cut(row.image_path)
        if pixels.dtype == np.uint8:
            return Image.fromarray(pixels)
        return Image.fromarray((pixels[..., 0] * 65535).round().astype(np.uint16))

    def _cut(self, name: str) -> npt.NDArray[Any]:
        return self.cutter.cut(Path(name).parent, int(Path(name).stem))


class Patches(ClassFolder):
    """Overlapping square patches of large images, such as X-ray scans of whole bags.

    The images lie as in :class:`~ganomaly_plugin.data.class_folder.ClassFolder`; the normal class is ``0.normal`` by
    default, on the official splits. anomalib's tiler cuts each image, enlarged by less than a stride so that patches
    cover it to the border. Patches of an anomalous image are anomalous where its annotation says so:

    * a mask ``<root>/ground_truth/<class>/<name of the image>.png``, anything but black being anomalous, or
    * rows of ``<root>/boxes.csv``, with the columns ``image`` (path below the root), ``x_min``, ``y_min``, ``x_max``
      and ``y_max`` in pixels of the image the right way up, the maxima excluded.

    Patches of an anomalous image without an annotation are all anomalous. Patches are cut when they are read, in the
    full depth of their images, of which up to 1 GiB stays decoded in each process.

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
        self.cutter = Cutter(patch_size, stride)
        self.anomalous_fraction = anomalous_fraction

    def load(self) -> LabelledImages:
        """Return the names and labels of all patches.

        Raises:
            FileNotFoundError: If a folder or a box file's entry has no image.
            UnreadableImageError: If a file holds no image.
            ValueError: If an image is smaller than a patch, a mask has another size than its image, or the box file
                lacks a column or holds an empty box.
        """
        paths, labels, is_train = self.find_files()
        boxes = self._read_boxes(paths)
        patch_labels, names = [], []
        for path, label in zip(track(paths, "Looking at images", transient=True), labels, strict=True):
            size = read_size(path)
            self._check_size(size, path)
            rows, columns = self.cutter.count(size)
            mask = None if label == self.chosen_class else self._read_annotation(path, size, boxes)
            is_anomalous = np.full(rows * columns, True)
            if mask is not None:
                is_anomalous = self.tiler.tile(mask).mean((1, 2, 3)).numpy() >= self.anomalous_fraction
            patch_labels.append(np.where(is_anomalous, label, self.chosen_class))
            names.append(_patch_names(path, rows * columns))
        return LabelledImages(
            paths=[name for group in names for name in group],
            labels=np.concatenate(patch_labels),
            is_train=np.repeat(is_train, [len(group) for group in names]),
            images=None,
        )

    def build_dataset(self, samples: pd.DataFrame, images: npt.NDArray[np.uint8] | None) -> AnomalibDataset:
        """Return a data set of patches."""
        del images
        return PatchDataset(samples, self.cutter)

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
        names = _patch_names(path, len(self.tiler.tile(pixels)))  # Tells the tiler the image's size as well.
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

    def _check_size(self, size: tuple[int, int], path: Path) -> None:
        if min(size) < self.cutter.side:
            msg = (
                f"'{path}' has {size} pixels, less than a patch of {self.cutter.side}: choose a smaller patch_size, or "
                "take the image out."
            )
            raise ValueError(msg)

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

    def _read_annotation(self, path: Path, size: tuple[int, int], boxes: pd.DataFrame | None) -> torch.Tensor | None:
        """Return the anomalous pixels of an image as ones, ``(1, H, W)``, or ``None`` where nothing is annotated."""
        mask_path = self.root / "ground_truth" / path.parent.name / f"{path.stem}.png"
        if mask_path.exists():
            mask = torch.as_tensor(read_mask(mask_path, as_tensor=True, annotated=path)).float().unsqueeze(0)
            if mask.shape[1:] != size:
                msg = f"'{mask_path}' has {tuple(mask.shape[1:])} pixels, but its image {size}: make them equal."
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
        visualizer, files = ImageVisualizer(), PictureFiles()
        folder = Path(self.output_dir or Path(trainer.default_root_dir) / "full_images")
        for item in items:
            picture = visualizer.visualize(item)
            assert isinstance(picture, Image.Image)  # noqa: S101  (one item makes one picture)
            picture.save(files.find(item.image_path, folder, suffix=".png"))


def _patch_names(path: Path, count: int) -> list[str]:
    """Name the patches of an image so that their names sort in the tiler's order, row by row."""
    return [f"{path}/{number:06}.png" for number in range(count)]

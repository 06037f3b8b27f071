# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that come with scikit-learn: real data, no download, trained on in seconds."""

import logging
import math
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from pandas import DataFrame
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms.v2 import Resize, Transform

from ganomaly_plugin.data.image_reader import read_image
from ganomaly_plugin.data.one_vs_rest import one_class_abnormal

logger = logging.getLogger(__name__)

WHITE = 16
"""Largest value of a pixel in scikit-learn's scans."""

SYNTHETIC_SIZE = (32, 32)
"""Smallest power of two, in pixels, that anomalib's noise always fits; below 17 pixels it fails at random."""


class DigitsDataset(AnomalibDataset):
    """Digits that are decoded once and kept, 768 bytes each, because decoding costs more than all other steps.

    Args:
        samples: anomalib's columns ``image_path``, ``label``, ``label_index``, ``mask_path`` and ``split``.
        augmentations: Applied to each image.
    """

    def __init__(self, samples: DataFrame, augmentations: Transform | None = None) -> None:
        super().__init__(augmentations)
        self.samples = samples
        self._images: dict[str, torch.Tensor] = {}

    def __getitem__(self, index: int) -> ImageItem:
        """Return one sample, its image ``(3, H, W)`` in [0, 1]."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ImageItem]:
        """Return several samples: PyTorch's loader asks for a whole batch where a dataset has this method."""
        rows = self.samples.iloc[indices]
        images = [self._image(path) for path in rows.image_path]
        if isinstance(self.augmentations, Resize):  # The same for every image, so one call serves them all.
            images = list(self.augmentations(torch.stack(images)))
        elif self.augmentations:
            images = [self.augmentations(image) for image in images]
        fields = zip(images, rows.label_index, rows.image_path, rows.mask_path, strict=True)
        return [
            ImageItem(
                image=tv_tensors.Image(image),
                gt_label=torch.tensor(label),
                image_path=image_path,
                mask_path=mask_path,
            )
            for image, label, image_path, mask_path in fields
        ]

    def _image(self, path: str) -> torch.Tensor:
        if path not in self._images:
            self._images[path] = read_image(path, as_tensor=True)
        return self._images[path]


class Digits(AnomalibDataModule):
    """1,797 scans of handwritten digits, 8x8 pixels, one digit being the anomaly and the nine others normal.

    The split is the one of the GANomaly paper: 80 % of the normal digits, chosen by the seed, are for training; the
    rest and every abnormal digit are for the test. The validation set is by default held out from the training digits,
    so that the test set stays whole and unseen.

    The scans are those of ``sklearn.datasets.load_digits``. They are written once as grey PNG files,
    ``<root>/<digit>/<number in scikit-learn's order>.png``, with 0 to 16 scaled to 0 to 255 and rounded (halves up).

    Args:
        root: Folder of the PNG files, made where it is missing. ``None`` is anomalib's cache folder.
        abnormal_class: The digit that is the anomaly, 0 to 9.
        train_batch_size: Images in a training batch. A last batch with fewer is left out, as in the GANomaly code,
            since batch normalisation suffers from it; a training set smaller than one batch is used whole.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Processes that load images. They cost more time than they save on images that small.
        train_augmentations: Applied to the training images.
        val_augmentations: Applied to the validation images.
        test_augmentations: Applied to the test images.
        augmentations: Applied wherever the three above are not given.
        val_split_mode: Where validation images come from, in anomalib's terms: ``none``, ``from_train``, ``from_test``,
            ``same_as_test`` or ``synthetic``. Synthetic anomalies do not fit into 8x8 pixels: with them, all images are
            enlarged to 32x32 by bilinear interpolation and kept in ``<root>/32x32``.
        val_split_ratio: Share of the images to take for validation, in (0, 1).
        seed: Non-negative seed of the splits.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> datamodule = Digits(abnormal_class=8)
        >>> datamodule.category
        '8'
    """

    seed: int  # anomalib allows None too, but processes that train together must agree on the split.

    def __init__(
        self,
        root: Path | str | None = "./datasets/Digits",
        abnormal_class: int = 0,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        val_split_ratio: float = 0.1,
        seed: int = 0,
    ) -> None:
        if abnormal_class not in range(10):
            msg = f"abnormal_class is {abnormal_class!r}, but must be a digit, one of {list(range(10))}."
            raise ValueError(msg)
        if not 0 < val_split_ratio < 1:
            msg = (
                f"val_split_ratio is {val_split_ratio}, but must lie between 0 and 1, ends excluded. "
                "To do without validation, set val_split_mode to 'none'."
            )
            raise ValueError(msg)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            test_split_mode=TestSplitMode.FROM_DIR,  # anomalib's word for: the test set is what _setup says.
            seed=seed,
        )
        if self.val_split_mode == ValSplitMode.FROM_DIR:
            allowed = [mode.value for mode in ValSplitMode if mode != ValSplitMode.FROM_DIR]
            msg = f"val_split_mode is 'from_dir', but the digits have no validation folder: choose one of {allowed}."
            raise ValueError(msg)
        self.root = resolve_dataset_root(root, self.name)
        self._enlarge = self.val_split_mode == ValSplitMode.SYNTHETIC
        self.abnormal_class = abnormal_class
        self.category = str(abnormal_class)

    def prepare_data(self) -> None:
        """Write the PNG files that are missing.

        A file appears under its name only when it is complete, so several processes may run this at a time and an
        interrupted run may be taken up again.
        """
        digits = load_digits()
        levels = ((digits.images.astype(int) * 255 + WHITE // 2) // WHITE).astype(np.uint8)
        missing = [
            (path, pixels) for path, pixels in zip(self._paths(digits.target), levels, strict=True) if not path.exists()
        ]
        for folder in {path.parent for path, _ in missing}:
            folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in missing:
            image = Image.fromarray(pixels)
            if self._enlarge:
                image = image.resize(SYNTHETIC_SIZE, Image.Resampling.BILINEAR)
            unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
            image.save(unfinished, format="PNG")
            unfinished.replace(path)
        logger.info("Wrote %d of %d digits to %s.", len(missing), len(levels), self.root)

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """Return the training batches, shuffled and of equal size, or all images at once where they fill no batch."""
        processes = self.trainer.world_size if self.trainer else 1
        images_per_process = math.ceil(len(self.train_data) / processes)
        return DataLoader(
            self.train_data,
            batch_size=self.train_batch_size,
            shuffle=True,
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
            drop_last=images_per_process >= self.train_batch_size,
        )

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Return the validation batches, none with ``val_split_mode="none"``."""
        return super().val_dataloader() if self.val_split_mode != ValSplitMode.NONE else []

    def _setup(self, _stage: str | None = None) -> None:
        self.prepare_data()  # Lightning calls it, but whoever uses the datamodule by hand may not.
        labels = load_digits().target
        split = one_class_abnormal(labels, self.abnormal_class, seed=self.seed)
        self.train_data = DigitsDataset(self._describe(labels, split.train, Split.TRAIN))
        self.test_data = DigitsDataset(self._describe(labels, split.test, Split.TEST))

    def _describe(self, labels: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], split: Split) -> DataFrame:
        """Return anomalib's table of the samples at the given indices."""
        paths = self._paths(labels)
        abnormal = labels[indices] == self.abnormal_class
        samples = DataFrame(
            {
                "image_path": [str(paths[index]) for index in indices],
                "label": np.where(abnormal, "abnormal", "normal"),
                "label_index": np.where(abnormal, LabelName.ABNORMAL, LabelName.NORMAL),
                "mask_path": "",
                "split": split,
            },
        )
        samples.attrs["task"] = "classification"
        return samples

    def _paths(self, labels: npt.NDArray[np.int64]) -> list[Path]:
        folder = self.root / "{}x{}".format(*SYNTHETIC_SIZE) if self._enlarge else self.root
        return [folder / str(label) / f"{index:04}.png" for index, label in enumerate(labels)]

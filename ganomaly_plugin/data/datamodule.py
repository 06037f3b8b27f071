# SPDX-License-Identifier: Apache-2.0
"""What the labelled sets of this package share: protocols, validation, loaders."""

import math
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from anomalib.data.utils.split import random_split
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from pandas import DataFrame
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform

from ganomaly_plugin.data.class_names import ClassName, find_class
from ganomaly_plugin.data.in_memory import InMemoryDataset
from ganomaly_plugin.data.named_dataset import NamedDataset
from ganomaly_plugin.data.one_vs_rest import PROTOCOLS, Protocol, split_one_vs_rest
from ganomaly_plugin.image_reader import install, publish

SYNTHETIC_SIZE = 32
"""Smallest power of two, in pixels, that anomalib's synthetic anomalies always fit; below 17 they fail at random."""


class LabelledImages(NamedTuple):
    """A whole classification set."""

    paths: Sequence[str]
    """Name of each image, unique: its file, where the images are not in memory."""
    labels: npt.NDArray[np.int64]
    """Class of each image, an index into the datamodule's ``class_names``."""
    is_train: npt.NDArray[np.bool_]
    """Whether each image belongs to the official training split."""
    images: npt.NDArray[np.uint8] | None
    """Grey ``(N, H, W)`` or colour ``(N, H, W, 3)``; ``None`` leaves them in their files."""


class OneVsRestDataModule(AnomalibDataModule):
    """A classification set, of which one class is the anomaly or the only normal one.

    Subclasses say what the classes are and load the images.

    Args:
        one_vs_rest: ``abnormal``: the chosen class is the anomaly. Normal images of both official splits are pooled and
            shuffled by the seed, 80 % are for training; the rest and all anomalous images are for the test (the
            GANomaly paper). ``abnormal_official``: the same on the official splits, without a seed; anomalous images of
            both are for the test. ``normal``: the chosen class is normal, on the official splits (most later papers).
            AUROCs of different protocols are not comparable.
        abnormal_class: The chosen class by name, or by number from 0 where no class has that name, for the first two
            protocols; the first class by default. See :func:`~ganomaly_plugin.data.class_names.find_class`.
        normal_class: The chosen class for ``normal``; the first class by default.
        max_train_images: Training images at most, validation images held out from them included. ``None`` keeps all.
        max_test_images: Test images of each kind, normal and anomalous, at most. ``None`` keeps all.
        train_batch_size: Images in a training batch. A last batch with fewer is left out, as in the GANomaly code,
            since batch normalisation suffers from it; a training set smaller than one batch is used whole.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Processes that load images. They cost more time than they save on images in memory.
        train_augmentations: Applied to the training images.
        val_augmentations: Applied to the validation images.
        test_augmentations: Applied to the test images.
        augmentations: Applied wherever the three above are not given.
        val_split_mode: Where validation images come from, in anomalib's terms: ``from_train`` (normal images, held
            out from the training set), ``from_test`` (normal and anomalous images, removed from the test set),
            ``same_as_test``, ``synthetic`` (held out, and half of them damaged by anomalib's noise) or ``none``.
        val_split_ratio: Fraction of the images to take for validation, in (0, 1).
        seed: Non-negative seed of the splits, and of the choice of images where their number is limited. ``None`` is 0,
            since processes that train together must agree on the split.
        test_split_mode: Accepted so that anomalib's configurations load: ``from_dir`` or ``None``. The test set follows
            from ``one_vs_rest``.
        test_split_ratio: Ignored, as anomalib does with ``from_dir``.

    Raises:
        ValueError: If an argument is out of its range; the message names the value and what is allowed.
    """

    class_names: Sequence[str]
    synonyms: ClassVar[dict[str, str]] = {}
    """Other names of classes."""
    protocols: ClassVar[Sequence[Protocol]] = PROTOCOLS
    seed: int

    def __init__(
        self,
        one_vs_rest: Protocol = "abnormal",
        abnormal_class: ClassName | None = None,
        normal_class: ClassName | None = None,
        max_train_images: int | None = None,
        max_test_images: int | None = None,
        train_batch_size: int = 64,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        val_split_ratio: float = 0.1,
        seed: int | None = 0,
        test_split_mode: TestSplitMode | str | None = None,
        test_split_ratio: float | None = None,
    ) -> None:
        del test_split_ratio
        if test_split_mode not in (None, TestSplitMode.FROM_DIR.value):
            msg = (
                f"test_split_mode is {str(test_split_mode)!r}, but the test set follows from one_vs_rest: leave it "
                "out, or limit the test set by max_test_images."
            )
            raise ValueError(msg)
        seed = seed or 0
        if one_vs_rest not in self.protocols:
            msg = f"one_vs_rest is {one_vs_rest!r}, but must be one of {', '.join(self.protocols)}."
            raise ValueError(msg)
        allowed_modes = [mode.value for mode in ValSplitMode if mode != ValSplitMode.FROM_DIR]
        if val_split_mode not in allowed_modes:
            msg = f"val_split_mode is {str(val_split_mode)!r}, but must be one of {', '.join(allowed_modes)}."
            raise ValueError(msg)
        if not 0 < val_split_ratio < 1:
            msg = (
                f"val_split_ratio is {val_split_ratio}, but must lie between 0 and 1, ends excluded. "
                "To do without validation, set val_split_mode to 'none'."
            )
            raise ValueError(msg)
        if seed < 0:
            msg = f"seed is {seed}, but must not be negative."
            raise ValueError(msg)
        for name, limit in (("max_train_images", max_train_images), ("max_test_images", max_test_images)):
            if limit is not None and limit < 1:
                msg = f"{name} is {limit}, but must be at least 1, or None for all images."
                raise ValueError(msg)
        install()
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
        self.one_vs_rest = one_vs_rest
        self.max_train_images = max_train_images
        self.max_test_images = max_test_images
        used, unused = "abnormal_class", "normal_class"
        arguments = {used: abnormal_class, unused: normal_class}
        if one_vs_rest == "normal":
            used, unused = unused, used
        if arguments[unused] is not None:
            msg = f"{unused} is {arguments[unused]!r}, but with one_vs_rest={one_vs_rest!r} {used} chooses the class."
            raise ValueError(msg)
        self.chosen_class = find_class(used, arguments[used], self.class_names, self.synonyms)
        self.category = f"{one_vs_rest}-{self.class_names[self.chosen_class]}"

    @abstractmethod
    def load(self) -> LabelledImages:
        """Return the whole set, also if ``prepare_data`` has not been called."""

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
        loaded = self.load()
        publish(self)
        split = split_one_vs_rest(self.one_vs_rest, loaded.labels, loaded.is_train, self.chosen_class, seed=self.seed)
        generator = np.random.default_rng(self.seed)
        self.train_data = _draw(self._dataset(loaded, split.train, Split.TRAIN), self.max_train_images, generator)
        self.test_data = _draw(self._dataset(loaded, split.test, Split.TEST), self.max_test_images, generator)

    def _dataset(self, loaded: LabelledImages, positions: npt.NDArray[np.int64], split: Split) -> AnomalibDataset:
        is_anomalous = (loaded.labels[positions] == self.chosen_class) != (self.one_vs_rest == "normal")
        samples = DataFrame(
            {
                "image_path": [loaded.paths[position] for position in positions],
                "label": np.where(is_anomalous, "abnormal", "normal"),
                "label_index": np.where(is_anomalous, LabelName.ABNORMAL, LabelName.NORMAL),
                "mask_path": "",
                "split": split,
                "position": positions,
            },
        )
        samples.attrs["task"] = "classification"
        return self.build_dataset(samples, loaded.images)

    def build_dataset(self, samples: DataFrame, images: npt.NDArray[np.uint8] | None) -> AnomalibDataset:
        """Return a data set of some images, in memory or in their files."""
        if images is not None:
            return InMemoryDataset(samples, images)
        dataset = AnomalibDataset()
        dataset.samples = samples
        return dataset

    def find_image(self, name: str) -> Image.Image | None:
        """Return the image of a name, for images that have no file."""
        for subset in ("train_data", "val_data", "test_data"):
            data = getattr(self, subset, None)
            if isinstance(data, NamedDataset):
                row = int(data.samples.image_path.searchsorted(name))  # The samples are in the order of the names.
                if row < len(data) and data.samples.image_path[row] == name:
                    return data.to_picture(data.samples.iloc[row])
        return None

    def _create_val_split(self) -> None:
        """Create the validation set as anomalib does, but give its noise the files that it reads."""
        if self.val_split_mode != ValSplitMode.SYNTHETIC or not isinstance(self.train_data, NamedDataset):
            super()._create_val_split()
            return
        self.train_data, held_out = random_split(self.train_data, self.val_split_ratio, seed=self.seed)
        assert isinstance(held_out, NamedDataset)  # noqa: S101  (as the set that it was split from)
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self.val_data = SyntheticAnomalyDataset(
            None, held_out.write_files(Path(folder), SYNTHETIC_SIZE), dataset_name=self.name
        )


def _draw(dataset: AnomalibDataset, limit: int | None, generator: np.random.Generator) -> AnomalibDataset:
    """Return a data set with at most ``limit`` images of each label."""
    rows = [np.flatnonzero(dataset.samples.label_index == label) for label in (LabelName.NORMAL, LabelName.ABNORMAL)]
    # Drawn without a limit as well, so that the test images do not depend on the limit of the training images.
    drawn = np.concatenate([generator.permutation(each)[:limit] for each in rows])
    return dataset if limit is None else dataset.subsample(drawn.tolist())

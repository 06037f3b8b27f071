# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10: 60,000 colour images of 32x32 pixels."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets

from ganomaly_plugin.data.datamodule import LabelledImages, OneVsRestDataModule


class CIFAR10(OneVsRestDataModule):
    """Small photographs of vehicles and animals (Krizhevsky 2009), 50,000 for training and 10,000 for the test.

    Args:
        root: Folder that holds, or will hold, torchvision's folder ``cifar-10-batches-py``. What is missing is
            downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`. The classes are named as
            in the GANomaly paper; ``airplane`` and ``automobile`` are understood as well.

    Example:
        >>> datamodule = CIFAR10(abnormal_class="car")
        >>> datamodule.category
        'abnormal-car'
    """

    class_names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    synonyms: ClassVar = {"airplane": "plane", "automobile": "car"}

    def __init__(self, root: Path | str = "./datasets", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Download what is missing."""
        datasets.CIFAR10(self.root, download=True)

    def load(self) -> LabelledImages:
        """Return the images of both official splits, training first."""
        parts = {split: datasets.CIFAR10(self.root, train=split == "train") for split in ("train", "test")}
        return LabelledImages(
            paths=[f"cifar10/{split}/{i:05}.png" for split in parts for i in range(len(parts[split]))],
            labels=np.concatenate([part.targets for part in parts.values()]),
            is_train=np.repeat([True, False], [len(part) for part in parts.values()]),
            images=np.concatenate([part.data for part in parts.values()]),
        )

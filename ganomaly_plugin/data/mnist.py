# SPDX-License-Identifier: Apache-2.0
"""MNIST and Fashion-MNIST: 70,000 grey images of 28x28 pixels each."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets

from ganomaly_plugin.data.datamodule import LabelledImages, OneVsRestDataModule


class MNIST(OneVsRestDataModule):
    """Handwritten digits (LeCun et al. 1998), 60,000 of them for training and 10,000 for the test.

    Args:
        root: Folder that holds, or will hold, torchvision's folder ``MNIST``. What is missing is downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Example:
        >>> datamodule = MNIST(abnormal_class=2)
        >>> datamodule.category
        'abnormal-2'
    """

    class_names = tuple(str(digit) for digit in range(10))
    source: ClassVar[type[datasets.MNIST]] = datasets.MNIST

    def __init__(self, root: Path | str = "./datasets", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.source(self.root, download=True)

    def load(self) -> LabelledImages:
        """Return the images of both official splits, training first."""
        parts = {split: self.source(self.root, train=split == "train") for split in ("train", "test")}
        return LabelledImages(
            paths=[f"{self.name.lower()}/{split}/{i:05}.png" for split in parts for i in range(len(parts[split]))],
            labels=np.concatenate([part.targets.numpy() for part in parts.values()]),
            is_train=np.repeat([True, False], [len(part) for part in parts.values()]),
            images=np.concatenate([part.data.numpy() for part in parts.values()]),
        )


class FashionMNIST(MNIST):
    """Pictures of clothes (Xiao et al. 2017), 60,000 of them for training and 10,000 for the test.

    Args:
        root: Folder that holds, or will hold, torchvision's folder ``FashionMNIST``. What is missing is downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Example:
        >>> datamodule = FashionMNIST(abnormal_class="ankle boot")
        >>> datamodule.category
        'abnormal-ankle boot'
    """

    class_names = (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    source = datasets.FashionMNIST

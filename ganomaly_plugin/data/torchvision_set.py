# SPDX-License-Identifier: Apache-2.0
"""What the sets that torchvision downloads and reads have in common."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ganomaly_plugin.data.datamodule import LabelledImages, OneVsRestDataModule


class TorchvisionDataModule(OneVsRestDataModule):
    """A set of torchvision's with an official training and test split. Subclasses name it and its classes.

    Args:
        root: Folder that holds, or will hold, torchvision's own folder of the set. What is missing is downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.
    """

    source: ClassVar[Any]
    """torchvision's class, whose instances have ``data`` and ``targets``."""

    def __init__(self, root: Path | str = "./datasets", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.source(self.root, download=True)

    def load(self) -> LabelledImages:
        """Return the images of both official splits, training first; download what is missing."""
        parts = {split: self.source(self.root, train=split == "train", download=True) for split in ("train", "test")}
        return LabelledImages(
            paths=[f"{self.name.lower()}/{split}/{i:05}.png" for split in parts for i in range(len(parts[split]))],
            labels=np.concatenate([np.asarray(part.targets) for part in parts.values()]),
            is_train=np.repeat([True, False], [len(part) for part in parts.values()]),
            images=np.concatenate([np.asarray(part.data) for part in parts.values()]),
        )

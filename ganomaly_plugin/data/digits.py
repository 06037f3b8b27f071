# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that come with scikit-learn: real data, no download, trained on in seconds."""

import logging
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anomalib.utils.path import resolve_dataset_root
from PIL import Image
from sklearn.datasets import load_digits

from ganomaly_plugin.data.class_names import ClassName
from ganomaly_plugin.data.datamodule import LabelledImages, OneVsRestDataModule

logger = logging.getLogger(__name__)

WHITE = 16
"""Largest value of a pixel in scikit-learn's scans."""


class Digits(OneVsRestDataModule):
    """1,797 scans of handwritten digits, 8x8 pixels: those of ``sklearn.datasets.load_digits``.

    They are written once as grey PNG files, ``<root>/<digit>/<number in scikit-learn's order>.png``, for programs that
    read files, with 0 to 16 scaled to 0 to 255 and rounded (halves up).

    The set comes without an official split, so the paper's protocol, ``one_vs_rest="abnormal"``, is the only one.

    Args:
        root: Folder of the PNG files, made where it is missing. ``None`` is anomalib's cache folder.
        abnormal_class: The digit that is the anomaly.
        train_batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        **kwargs: Further arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Example:
        >>> datamodule = Digits(abnormal_class=8)
        >>> datamodule.category
        'abnormal-8'
    """

    class_names = tuple(str(digit) for digit in range(10))
    protocols = ("abnormal",)

    def __init__(
        self,
        root: Path | str | None = "./datasets/Digits",
        abnormal_class: ClassName | None = None,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            abnormal_class=abnormal_class,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            **kwargs,
        )
        self.root = resolve_dataset_root(root, self.name)

    def prepare_data(self) -> None:
        """Write the PNG files that are missing.

        A file appears under its name only when it is complete, so several processes may run this at a time, and an
        interrupted run may be repeated.
        """
        images, labels = _read_scans()
        missing = [(path, image) for path, image in zip(self._paths(labels), images, strict=True) if not path.exists()]
        for folder in {path.parent for path, _ in missing}:
            folder.mkdir(parents=True, exist_ok=True)
        for path, image in missing:
            unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
            Image.fromarray(image).save(unfinished, format="PNG")
            unfinished.replace(path)
        if missing:
            logger.info("Wrote %d of %d digits to %s.", len(missing), len(images), self.root)

    def load(self) -> LabelledImages:
        """Return all scans."""
        self.prepare_data()  # Lightning calls it, but a user of the datamodule in Python may not.
        images, labels = _read_scans()
        return LabelledImages(
            paths=[str(path) for path in self._paths(labels)],
            labels=labels,
            is_train=np.ones(len(labels), dtype=bool),
            images=images,
        )

    def _paths(self, labels: npt.NDArray[np.int64]) -> list[Path]:
        return [self.root / str(label) / f"{index:04}.png" for index, label in enumerate(labels)]


def _read_scans() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    digits = load_digits()
    levels = (digits.images.astype(int) * 255 + WHITE // 2) // WHITE
    return levels.astype(np.uint8), digits.target

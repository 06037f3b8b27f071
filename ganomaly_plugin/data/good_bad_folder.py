# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own: pictures of good parts, and of bad ones where there are any."""

from glob import glob
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ganomaly_plugin.data.class_folder import decode_small
from ganomaly_plugin.data.datamodule import LabelledImages, OneVsRestDataModule
from ganomaly_plugin.data.one_vs_rest import Protocol

FEWEST = 5
"""Good parts at least: three for training, one for validation and one for the test."""
ENOUGH = 20
"""Good parts for the threshold that are enough for its promise of one false alarm in twenty."""


class GoodBadFolder(OneVsRestDataModule):
    """Images in ``<root>/good`` and ``<root>/bad``, of which the latter may be missing; subfolders count as well.

    A tenth of the good parts, drawn by the seed, is held out for the test, together with all bad parts. Of the others,
    some are for validation, where the threshold is computed, and the rest for training. By default a tenth of all good
    parts is for validation, or 20 where that is more, but at most a fifth: fewer than 19 promise little of a threshold,
    and each one is missed in training. Bad parts have no share in the threshold. Names that start with a dot are left
    out.

    For masks of defects, or other names of folders, use anomalib's ``Folder``.

    Args:
        root: Folder that holds ``good`` and perhaps ``bad``.
        val_split_ratio: Fraction of the good parts outside of the test set to take for validation instead, in (0, 1).
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule` but those of its protocol.

    Raises:
        FileNotFoundError: If ``good`` holds no image, or there is a ``bad`` without one.
        ValueError: If there are fewer than five good parts, or an argument is out of its range.
    """

    class_names = ("good", "bad")
    protocols: ClassVar[tuple[Protocol, ...]] = ("normal",)

    def __init__(self, root: Path | str, val_split_ratio: float | None = None, **kwargs: Any) -> None:
        self.root = Path(root)
        good, bad = self._find_files()
        if not good:
            msg = (
                f"'{self.root}/good' holds no image ({', '.join(IMG_EXTENSIONS)}): put pictures of good parts there, "
                f"and those of bad ones, if you have any, into '{self.root}/bad'."
            )
            raise FileNotFoundError(msg)
        if len(good) < FEWEST:
            msg = f"'{self.root}/good' holds {len(good)} images, but {FEWEST} are needed at least: add some."
            raise ValueError(msg)
        if (self.root / "bad").exists() and not bad:
            msg = f"'{self.root}/bad' holds no image: add pictures of bad parts, or remove it."
            raise FileNotFoundError(msg)
        if val_split_ratio is None:
            count = max(1, min(max(len(good) // 10, ENOUGH), len(good) // 5))
            val_split_ratio = (count + 0.5) / _count_kept(good)  # Which anomalib rounds down to the count.
        super().__init__(one_vs_rest="normal", normal_class="good", val_split_ratio=val_split_ratio, **kwargs)
        self.category = ""  # There is one only.

    @property
    def name(self) -> str:  # type: ignore[override]  # a property there as well
        """Name of the root folder, under which anomalib files the results."""
        return self.root.resolve().name

    def load(self) -> LabelledImages:
        """Return all images, decoded if they are small, of one size and of 8 bits."""
        good, bad = self._find_files()
        is_train = np.zeros(len(good) + len(bad), dtype=bool)
        is_train[np.random.default_rng(self.seed).permutation(len(good))[: _count_kept(good)]] = True
        labels = np.repeat([0, 1], [len(good), len(bad)])
        return LabelledImages([str(path) for path in good + bad], labels, is_train, decode_small(good + bad))

    def _find_files(self) -> tuple[list[Path], list[Path]]:
        """Return the pictures of good and of bad parts."""
        good, bad = (
            sorted(
                self.root / kind / name
                for name in glob("**/*", root_dir=self.root / kind, recursive=True)  # noqa: PTH207  (follows links)
                if name.lower().endswith(IMG_EXTENSIONS)
            )
            for kind in self.class_names
        )
        return good, bad


def _count_kept(good: list[Path]) -> int:
    """Return how many good parts are not for the test."""
    return len(good) * 9 // 10

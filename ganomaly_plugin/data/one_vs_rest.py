# SPDX-License-Identifier: Apache-2.0
"""Turn a labelled classification set into an anomaly detection task.

The functions know labels and positions only, so that they serve any data set.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class OneVsRestSplit(NamedTuple):
    """Positions in the list of labels, in ascending order: no position is in both sets."""

    train: npt.NDArray[np.int64]
    """Normal samples to learn from."""
    test: npt.NDArray[np.int64]
    """The other normal samples and the abnormal ones."""


def one_class_abnormal(
    labels: Sequence[int] | npt.NDArray[np.integer],
    abnormal_class: int,
    *,
    train_share: float = 0.8,
    seed: int = 0,
) -> OneVsRestSplit:
    """Make one class the anomaly and all the others normal, as the GANomaly paper does with MNIST and CIFAR-10.

    The normal samples of all classes are pooled and shuffled by the seed. A share of them is for training; the rest and
    every abnormal sample are for the test.

    Args:
        labels: Class of each sample.
        abnormal_class: The class that is the anomaly, one of the labels.
        train_share: Share of the normal samples to train on, in (0, 1); their number is rounded down.
        seed: Non-negative seed of the shuffle.

    Returns:
        The positions for training and for the test.

    Raises:
        ValueError: If an argument is out of its range, or a set would be without normal samples.

    Example:
        >>> split = one_class_abnormal([3, 7, 7, 3, 7, 7, 7], abnormal_class=3)
        >>> len(split.train), len(split.test)
        (4, 3)
    """
    classes = np.unique(labels).tolist()
    if abnormal_class not in classes:
        msg = f"abnormal_class is {abnormal_class!r}, but must be one of the labels: {classes}."
        raise ValueError(msg)
    if not 0 < train_share < 1:
        msg = f"train_share is {train_share}, but must lie between 0 and 1, ends excluded."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed is {seed}, but must not be negative."
        raise ValueError(msg)
    is_normal = np.asarray(labels) != abnormal_class
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(is_normal))
    n_train = int(train_share * len(normal))
    if n_train == 0:  # Rounding down leaves the test set at least one as soon as there is any.
        msg = (
            f"{len(normal)} normal samples at train_share={train_share} leave none for training: "
            "give more samples of other classes than the abnormal one, or a larger share."
        )
        raise ValueError(msg)
    return OneVsRestSplit(
        train=np.sort(normal[:n_train]),
        test=np.sort(np.concatenate([normal[n_train:], np.flatnonzero(~is_normal)])),
    )

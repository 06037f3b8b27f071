# SPDX-License-Identifier: Apache-2.0
"""Turn a labelled classification set into an anomaly detection task.

The functions know labels and positions only, so that they serve any data set.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

Protocol = Literal["abnormal", "abnormal_official", "normal"]
"""Whether the chosen class is the anomaly, in the paper's split or in the official one, or the only normal class."""

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

Labels = Sequence[int] | npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]


class OneVsRestSplit(NamedTuple):
    """Positions in the list of labels, in ascending order: no position is in both sets."""

    train: npt.NDArray[np.int64]
    """Normal samples to learn from."""
    test: npt.NDArray[np.int64]
    """The other normal samples and the anomalous ones."""


def one_anomalous_class(
    labels: Labels, abnormal_class: int, *, train_fraction: float = 0.8, seed: int = 0
) -> OneVsRestSplit:
    """Make one class the anomaly and all the others normal, as the GANomaly paper does with MNIST and CIFAR-10.

    The normal samples of all classes are pooled and shuffled by the seed. A fraction of them is for training; the rest
    and every anomalous sample are for the test.

    Args:
        labels: Class of each sample.
        abnormal_class: The class that is the anomaly, one of the labels.
        train_fraction: Fraction of the normal samples to train on, in (0, 1); their number is rounded down.
        seed: Non-negative seed of the shuffle.

    Returns:
        The positions for training and for the test.

    Raises:
        ValueError: If an argument is out of its range, or a set would be without normal samples.

    Example:
        >>> split = one_anomalous_class([3, 7, 7, 3, 7, 7, 7], abnormal_class=3)
        >>> len(split.train), len(split.test)
        (4, 3)
    """
    is_normal = ~_is_class(labels, "abnormal_class", abnormal_class)
    if not 0 < train_fraction < 1:
        msg = f"train_fraction is {train_fraction}, but must lie between 0 and 1, ends excluded."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed is {seed}, but must not be negative."
        raise ValueError(msg)
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(is_normal))
    n_train = int(train_fraction * len(normal))
    if n_train == 0:  # Rounding down leaves the test set at least one as soon as there is any.
        msg = (
            f"{len(normal)} normal samples at train_fraction={train_fraction} leave none for training: "
            "give more samples of other classes than the anomalous one, or a larger fraction."
        )
        raise ValueError(msg)
    return OneVsRestSplit(
        train=np.sort(normal[:n_train]),
        test=np.sort(np.concatenate([normal[n_train:], np.flatnonzero(~is_normal)])),
    )


def one_anomalous_class_official(labels: Labels, is_train: Mask, abnormal_class: int) -> OneVsRestSplit:
    """Make one class the anomaly on the split that the data set comes with, which no seed changes.

    The GANomaly code does this where no seed is given: normal samples stay where they are, and anomalous ones of both
    splits are for the test.

    Args:
        labels: Class of each sample.
        is_train: Whether each sample belongs to the official training split.
        abnormal_class: The class that is the anomaly, one of the labels.

    Raises:
        ValueError: If the class is not among the labels, or no normal sample is left for training or for the test.
    """
    is_anomalous = _is_class(labels, "abnormal_class", abnormal_class)
    return _by_masks(is_train & ~is_anomalous, ~is_train | is_anomalous, is_anomalous)


def one_normal_class(labels: Labels, is_train: Mask, normal_class: int) -> OneVsRestSplit:
    """Make one class normal and all the others the anomaly, on the official splits, as most later papers do.

    Args:
        labels: Class of each sample.
        is_train: Whether each sample belongs to the official training split.
        normal_class: The class that is normal, one of the labels.

    Raises:
        ValueError: If the class is not among the labels, or no normal sample is left for training or for the test.
    """
    is_anomalous = ~_is_class(labels, "normal_class", normal_class)
    return _by_masks(is_train & ~is_anomalous, ~is_train, is_anomalous)


def _is_class(labels: Labels, argument: str, chosen: int) -> Mask:
    classes = np.unique(labels).tolist()
    if chosen not in classes:
        msg = f"{argument} is {chosen!r}, but must be one of the labels: {classes}."
        raise ValueError(msg)
    is_chosen: Any = np.asarray(labels) == chosen
    return is_chosen


def _by_masks(train: Mask, test: Mask, is_anomalous: Mask) -> OneVsRestSplit:
    for name, members in (("training", train), ("test", test)):
        if not (members & ~is_anomalous).any():
            msg = f"No sample of the official {name} split is normal: add some, or choose another class or protocol."
            raise ValueError(msg)
    return OneVsRestSplit(np.flatnonzero(train), np.flatnonzero(test))

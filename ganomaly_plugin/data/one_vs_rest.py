# SPDX-License-Identifier: Apache-2.0
"""Turn a labelled classification set into an anomaly detection task, knowing labels and positions only."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

Protocol = Literal["abnormal", "abnormal_official", "normal"]
"""Whether the chosen class is the anomaly, in the paper's split or in the official one, or the only normal class."""

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


class OneVsRestSplit(NamedTuple):
    """Positions in the list of labels, in ascending order: no position is in both sets."""

    train: npt.NDArray[np.int64]
    """Normal samples to learn from."""
    test: npt.NDArray[np.int64]
    """Other normal samples and anomalous ones."""


def split_one_vs_rest(
    protocol: Protocol,
    labels: Sequence[int] | npt.NDArray[np.integer],
    is_train: npt.NDArray[np.bool_],
    chosen_class: int,
    *,
    train_fraction: float = 0.8,
    seed: int = 0,
) -> OneVsRestSplit:
    """Split a labelled set into normal samples for training, and other normal and anomalous ones for the test.

    * ``abnormal``: the chosen class is the anomaly. The normal samples of all other classes are pooled and shuffled by
      the seed; a fraction of them is for training, all the rest for the test. The GANomaly paper does this with MNIST
      and CIFAR-10.
    * ``abnormal_official``: the chosen class is the anomaly, but normal samples stay in the split that the data set
      comes with; anomalous ones of both splits are for the test. The GANomaly code does this where no seed is given.
    * ``normal``: the chosen class is normal and all others are anomalous, on the official splits; anomalous samples of
      the training split are left out. Most later papers do this.

    Args:
        protocol: One of the above.
        labels: Class of each sample.
        is_train: Whether each sample belongs to the official training split; not used by ``abnormal``.
        chosen_class: One of the labels.
        train_fraction: Fraction of the normal samples to train on, in (0, 1), for ``abnormal``; their number is rounded
            down.
        seed: Non-negative seed of the shuffle.

    Raises:
        ValueError: If an argument is out of its range, or no normal sample is left for training or for the test.

    Example:
        >>> split = split_one_vs_rest("abnormal", [3, 7, 7, 3, 7, 7, 7], np.ones(7, dtype=bool), chosen_class=3)
        >>> len(split.train), len(split.test)
        (4, 3)
    """
    labels = np.asarray(labels)
    classes = np.unique(labels).tolist()
    if chosen_class not in classes:
        name = "normal_class" if protocol == "normal" else "abnormal_class"
        msg = f"{name} is {chosen_class!r}, but must be one of the labels: {classes}."
        raise ValueError(msg)
    is_normal = (labels == chosen_class) == (protocol == "normal")
    if protocol == "abnormal":
        is_train = _draw_train(is_normal, train_fraction, seed)
    train = is_train & is_normal
    test = ~is_train if protocol == "normal" else ~train
    for split, members in (("training", train), ("test", test)):
        if not (members & is_normal).any():
            msg = f"No sample of the official {split} split is normal: add some, or choose another class or protocol."
            raise ValueError(msg)
    return OneVsRestSplit(np.flatnonzero(train), np.flatnonzero(test))


def _draw_train(is_normal: npt.NDArray[np.bool_], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    if not 0 < fraction < 1:
        msg = f"train_fraction is {fraction}, but must lie between 0 and 1, ends excluded."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed is {seed}, but must not be negative."
        raise ValueError(msg)
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(is_normal))
    n_train = int(fraction * len(normal))
    if n_train == 0:  # Rounding down leaves the test set at least one as soon as there is any.
        msg = (
            f"{len(normal)} normal samples at train_fraction={fraction} leave none for training: "
            "give more samples of other classes than the anomalous one, or a larger fraction."
        )
        raise ValueError(msg)
    is_train = np.zeros(len(is_normal), dtype=bool)
    is_train[normal[:n_train]] = True
    return is_train

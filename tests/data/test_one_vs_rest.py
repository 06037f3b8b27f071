# SPDX-License-Identifier: Apache-2.0
"""The protocol, on labels small enough to count by hand."""

from typing import Any

import numpy as np
import pytest

from ganomaly_plugin.data.one_vs_rest import OneVsRestSplit, split_one_vs_rest

LABELS = [3, 7, 7, 3, 9, 7, 7, 9, 7, 9, 7, 9]
"""Two threes, six sevens, four nines."""


def split_pooled(labels: Any, abnormal_class: int, **kwargs: Any) -> OneVsRestSplit:
    """Split by the paper's protocol, which does not use the official split."""
    return split_one_vs_rest("abnormal", labels, np.zeros(len(labels), dtype=bool), abnormal_class, **kwargs)


def test_sizes_follow_the_paper() -> None:
    """Ten normals at 80 %: eight for training, two left for the test beside the two anomalous ones."""
    split = split_pooled(LABELS, 3)
    assert len(split.train) == 8
    assert len(split.test) == 2 + 2


@pytest.mark.parametrize("train_fraction", [0.2, 0.5, 0.95])
def test_every_sample_is_in_exactly_one_set(train_fraction: float) -> None:
    """Nothing is lost and nothing is seen twice."""
    split = split_pooled(LABELS, 7, train_fraction=train_fraction)
    assert sorted([*split.train, *split.test]) == list(range(12))


@pytest.mark.parametrize("abnormal_class", [3, 7, 9])
def test_training_sees_no_anomaly(abnormal_class: int) -> None:
    """All anomalies are in the test set."""
    split = split_pooled(np.array(LABELS), abnormal_class, seed=5)
    assert abnormal_class not in np.array(LABELS)[split.train]
    assert (np.array(LABELS)[split.test] == abnormal_class).sum() == LABELS.count(abnormal_class)


def test_only_the_seed_decides() -> None:
    """The same seed gives the same split, another one a different split."""
    labels = np.arange(1000) % 10
    first, again, other = (split_pooled(labels, 4, seed=seed).train.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_normal_classes_are_shuffled_together() -> None:
    """Sorted labels, where a split without a shuffle would train on only the first classes."""
    labels = np.repeat(np.arange(10), 100)
    split = split_pooled(labels, 0)
    counts = np.bincount(labels[split.train], minlength=10)
    assert counts[0] == 0
    assert all(60 <= count <= 95 for count in counts[1:])


def test_number_of_training_samples_is_rounded_down() -> None:
    """Three normals at 80 % are 2.4."""
    assert len(split_pooled([0, 1, 1, 1], 0).train) == 2


def test_unknown_class_is_refused_with_the_known_ones() -> None:
    """The message names the value and what works."""
    with pytest.raises(ValueError, match=r"abnormal_class is 5, .* \[3, 7, 9\]"):
        split_pooled(LABELS, 5)


@pytest.mark.parametrize("train_fraction", [-0.1, 0.0, 1.0, 80, float("nan")])
def test_fraction_outside_its_range_is_refused(train_fraction: float) -> None:
    """A percentage is no fraction."""
    with pytest.raises(ValueError, match=rf"train_fraction is {train_fraction}, .* between 0 and 1"):
        split_pooled(LABELS, 3, train_fraction=train_fraction)


def test_negative_seed_is_refused() -> None:
    """NumPy would refuse it without its name."""
    with pytest.raises(ValueError, match="seed is -1"):
        split_pooled(LABELS, 3, seed=-1)


@pytest.mark.parametrize("labels", [[3, 3, 3], [3, 7]])
def test_empty_training_set_is_refused(labels: list[int]) -> None:
    """No normals at all, or too few for the fraction."""
    with pytest.raises(ValueError, match="leave none for training"):
        split_pooled(labels, 3)


def test_no_labels_are_refused() -> None:
    """An empty set has no classes to choose from."""
    with pytest.raises(ValueError, match=r"one of the labels: \[\]"):
        split_pooled([], 3)


IS_TRAIN = np.array([True] * 8 + [False] * 4)
"""Official training split: two threes, four sevens, two nines. Test: two sevens, two nines."""


def test_cifar10_has_the_sizes_of_the_official_code() -> None:
    """43,200 for training and 10,800 + 6,000 for the test by the paper; 45,000 and 9,000 + 6,000 on official splits."""
    labels = np.repeat(np.arange(10), 6000)
    pooled = split_pooled(labels, 2)
    assert (len(pooled.train), len(pooled.test)) == (43_200, 10_800 + 6_000)
    official = split_one_vs_rest("abnormal_official", labels, np.arange(60_000) % 6000 < 5000, 2)
    assert (len(official.train), len(official.test)) == (45_000, 9_000 + 6_000)


def test_official_splits_with_one_anomalous_class() -> None:
    """Anomalous samples of both splits are for the test."""
    split = split_one_vs_rest("abnormal_official", LABELS, IS_TRAIN, 7)
    assert split.train.tolist() == [0, 3, 4, 7]
    assert split.test.tolist() == [1, 2, 5, 6, 8, 9, 10, 11]


def test_official_splits_with_one_normal_class() -> None:
    """Anomalous samples of the training split are left out."""
    split = split_one_vs_rest("normal", LABELS, IS_TRAIN, 7)
    assert split.train.tolist() == [1, 2, 5, 6]
    assert split.test.tolist() == [8, 9, 10, 11]


def test_class_that_the_official_test_lacks_is_refused() -> None:
    """No three is in the test split."""
    with pytest.raises(ValueError, match="No sample of the official test split is normal"):
        split_one_vs_rest("normal", LABELS, IS_TRAIN, 3)

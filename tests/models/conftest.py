# SPDX-License-Identifier: Apache-2.0
"""Small sets of real handwritten digits on disk, for trainings of a few steps."""

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import Folder
from PIL import Image
from sklearn.datasets import load_digits

NORMAL_DIGITS = (0, 1)
ANOMALOUS_DIGIT = 8


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with 32 normal digits to train on, and 10 normal and 10 anomalous ones to test on."""
    root = tmp_path_factory.mktemp("digits")
    scans, labels = load_digits(return_X_y=True)
    normal = np.flatnonzero(np.isin(labels, NORMAL_DIGITS))
    anomalous = np.flatnonzero(labels == ANOMALOUS_DIGIT)
    for name, indices in (("train", normal[:32]), ("normal", normal[32:42]), ("anomalous", anomalous[:10])):
        (root / name).mkdir()
        for index in indices:
            scan = Image.fromarray((scans[index].reshape(8, 8) / 16 * 255).astype(np.uint8))
            scan.resize((48, 40), Image.Resampling.BICUBIC).save(root / name / f"{index:04d}.png")
    return root


@pytest.fixture
def datamodule(digits_folder: Path) -> Folder:
    """Batches of 8 normal digits; half of the test images serve as validation."""
    return build_datamodule(digits_folder)


def build_datamodule(root: Path, **kwargs: object) -> Folder:
    """Build a datamodule over the tree of ``digits_folder``, with other settings where given."""
    settings: dict[str, object] = {
        "name": "digits",
        "root": root,
        "normal_dir": "train",
        "abnormal_dir": "anomalous",
        "normal_test_dir": "normal",
        "train_batch_size": 8,
        "eval_batch_size": 7,
        "num_workers": 0,
        "val_split_mode": "from_test",
        "seed": 0,
    }
    return Folder(**(settings | kwargs))

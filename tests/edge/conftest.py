# SPDX-License-Identifier: Apache-2.0
"""One trained model and its exports, for all tests of the edge runtime."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from anomalib.data import ImageBatch
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything

from ganomaly_plugin import Digits, FeatureGANomaly, GANomaly
from tests.engine import build_engine


def build_with_backbone(build: Any, size: int) -> AnomalibModule:
    """Build anomalib's PaDiM or PatchCore, or FeatureGANomaly, on a backbone with random weights."""
    settings = {"backbone": "resnet10t", "image_size": size}
    if build is not FeatureGANomaly:
        settings = {"backbone": "resnet18", "pre_processor": build.configure_pre_processor((size, size))}
    return build(layers=["layer1", "layer2"], pre_trained=False, visualizer=False, **settings)


class Trained(NamedTuple):
    """A model after a short training, its OpenVINO export, and what the engine predicts."""

    xml: Path
    folder: Path
    predictions: list[ImageBatch]

    @property
    def paths(self) -> list[str]:
        """Paths of the predicted images."""
        return [path for batch in self.predictions for path in batch.image_path]

    def values(self, name: str) -> np.ndarray:
        """One field of all predictions."""
        return np.concatenate([getattr(batch, name).numpy() for batch in self.predictions])


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """GANomaly on scikit-learn's digits, the eight anomalous; 30 images of each kind for the test."""
    root = tmp_path_factory.mktemp("edge")
    seed_everything(3)
    datamodule = Digits(root / "digits", 8, eval_batch_size=25, max_test_images=30)
    model = GANomaly(image_size=32, n_features=8, latent_vec_size=8, input_channels=1, visualizer=False)
    engine = build_engine(root, max_epochs=2, limit_train_batches=10, logger=False)
    engine.fit(model, datamodule=datamodule)
    predictions = engine.predict(model, datamodule=datamodule)
    return Trained(model.to_openvino(root / "export"), root, predictions)


@pytest.fixture(scope="session")
def train_with_backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], tuple[Path, ImageBatch]]:
    """Trains a class of models once, and gives its OpenVINO export and a batch that the engine has predicted."""

    @cache
    def train(build: Any) -> tuple[Path, ImageBatch]:
        root = tmp_path_factory.mktemp(build.__name__)
        model = build_with_backbone(build, 32)
        datamodule = Digits(root / "digits", 8, train_batch_size=16, eval_batch_size=8, max_test_images=30)
        limits = {"limit_train_batches": 1, "limit_val_batches": 2, "limit_predict_batches": 1}
        engine = build_engine(root, logger=False, **limits)
        engine.fit(model, datamodule=datamodule)
        (batch,) = engine.predict(model, datamodule=datamodule)
        return model.to_openvino(root / "export"), batch

    return train

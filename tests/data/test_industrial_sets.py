# SPDX-License-Identifier: Apache-2.0
"""anomalib's own datamodules with our model, on real industrial images."""

from pathlib import Path
from typing import Any

import pytest
from anomalib.data import AnomalibDataModule, Folder, MVTecAD

from ganomaly_plugin import GANomaly
from tests.engine import build_engine


def screw(root: Path) -> AnomalibDataModule:
    """MVTec AD's screws, 512x512 and grey."""
    return MVTecAD(root / "mvtec_ad", category="screw", num_workers=0, train_batch_size=8, eval_batch_size=8)


def magnetic_tile(root: Path) -> AnomalibDataModule:
    """Magnetic tiles, grey and of many sizes, through the datamodule for any folders."""
    return Folder(
        name="magnetic_tile",
        root=root / "magnetic_tile",
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=["test/blowhole", "test/crack"],
        mask_dir=["ground_truth/blowhole", "ground_truth/crack"],
        num_workers=0,
        train_batch_size=8,
        eval_batch_size=8,
    )


@pytest.mark.parametrize(("build", "sizes"), [(screw, (320, 160)), (magnetic_tile, (762, 362))])
def test_trains_tests_and_draws(real_data: Path, tmp_path: Path, build: Any, sizes: tuple[int, int]) -> None:
    """Image and pixel figures exist, and every tested image has its picture."""
    datamodule: Any = build(real_data)
    engine = build_engine(tmp_path, limit_train_batches=2, limit_val_batches=2, limit_test_batches=2, logger=False)
    model = GANomaly(n_features=4, latent_vec_size=4, input_channels=1)
    engine.fit(model, datamodule=datamodule)
    assert len(datamodule.train_data) == sizes[0]
    assert len(datamodule.test_data) + len(datamodule.val_data) >= sizes[1]
    (results,) = engine.test(model, datamodule=datamodule)
    assert 0 <= results["pixel_AUROC"] <= 1
    assert {"image_AUROC", "image_AveragePrecision", "image_F1Score", "pixel_F1Score"} <= set(results)
    assert len(list(tmp_path.rglob("images/**/*.*"))) == 16

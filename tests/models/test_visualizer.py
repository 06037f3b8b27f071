# SPDX-License-Identifier: Apache-2.0
"""Pictures of a test."""

import shutil
from pathlib import Path

import pytest
from anomalib.data import Folder
from PIL import Image

from ganomaly_plugin import GANomaly
from tests.engine import build_engine


@pytest.mark.parametrize("shows", [True, False], ids=["reconstruction", "none"])
def test_a_test_draws_every_image(tmp_path: Path, digits_folder: Path, shows: bool) -> None:
    """Two cameras number their pictures alike."""
    for camera in ("north", "south"):
        shutil.copytree(digits_folder / "anomalous", tmp_path / "parts" / camera / "bad")
    datamodule = Folder(
        name="set",
        root=tmp_path / "parts",
        normal_dir=digits_folder / "train",
        abnormal_dir=["north/bad", "south/bad"],
        normal_test_dir=digits_folder / "normal",
        eval_batch_size=8,
        num_workers=0,
        val_split_mode="none",
    )
    model = GANomaly(image_size=32, n_features=4, latent_vec_size=4)
    if not shows:
        model.model.space.show = lambda _reconstruction: None
    build_engine(tmp_path / "results").test(model, datamodule=datamodule)
    pictures = list(tmp_path.glob("results/**/images/**/*.png"))
    assert len(pictures) == len(datamodule.test_data) == 30
    assert {Image.open(picture).size for picture in pictures} == {((4 if shows else 3) * 256, 256)}

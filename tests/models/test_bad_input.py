# SPDX-License-Identifier: Apache-2.0
"""What an engineer's folder may hold, through anomalib's own datamodule and engine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from PIL import Image

from ganomaly_plugin import GANomaly
from ganomaly_plugin.image_file import UnreadableImageError
from tests.engine import build_engine

from .conftest import build_datamodule
from .model_tester import gather


def small_model() -> GANomaly:
    """A model that trains a step in no time."""
    return GANomaly(image_size=32, n_features=4, latent_vec_size=8, visualizer=False)


def fill(folder: Path, count: int, dtype: type = np.uint8) -> None:
    """Write noise images of the dtype's full range."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    for index in range(count):
        pixels = noise.integers(0, np.iinfo(dtype).max, (40, 48), dtype=dtype)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def folder_with(root: Path, n_train: int, batch_size: int = 8) -> Folder:
    """A datamodule whose training folder holds ``n_train`` images."""
    fill(root / "train", n_train)
    fill(root / "normal", 4)
    fill(root / "anomalous", 4)
    return build_datamodule(root, train_batch_size=batch_size)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    """No image to train on is an error that names the folder, before any training."""
    with pytest.raises(RuntimeError, match=r"Found 0 .*images in .*train"):
        build_engine(tmp_path).fit(small_model(), datamodule=folder_with(tmp_path, 0))


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """So is a folder that is not there."""
    with pytest.raises(FileNotFoundError, match="train"):
        build_engine(tmp_path).fit(small_model(), datamodule=build_datamodule(tmp_path))


@pytest.mark.parametrize(("n_train", "batch_size"), [(1, 8), (5, 64), (9, 8)])
def test_few_images_train(tmp_path: Path, n_train: int, batch_size: int) -> None:
    """One image, a batch larger than the set and a last batch of one image all take their steps."""
    engine = build_engine(tmp_path)
    model = small_model()
    engine.fit(model, datamodule=folder_with(tmp_path, n_train, batch_size))
    assert engine.trainer.global_step == -(-n_train // batch_size)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_truncated_image_is_named(tmp_path: Path) -> None:
    """A damaged file stops the training with its name."""
    datamodule = folder_with(tmp_path, 4)
    damaged = tmp_path / "train" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(UnreadableImageError, match="2.png"):
        build_engine(tmp_path).fit(small_model(), datamodule=datamodule)


def test_sixteen_bit_images_end_to_end(tmp_path: Path) -> None:
    """Deep grey images train and score as what they show, not as white."""
    for name, count in (("train", 4), ("normal", 4), ("anomalous", 4)):
        fill(tmp_path / name, count, np.uint16)
    datamodule = build_datamodule(tmp_path)
    engine = build_engine(tmp_path)
    model = small_model()
    engine.fit(model, datamodule=datamodule)
    batch = next(iter(datamodule.train_dataloader()))
    assert 0.4 < batch.image.mean() < 0.6
    predictions = engine.predict(model, datamodule=datamodule)
    assert gather(predictions, "raw_score").isfinite().all()


def test_any_image_kind_predicts_from_a_folder(tmp_path: Path) -> None:
    """Palette, transparency, CMYK, single bits and a turned photograph, of several sizes, all get a score."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (33, 60, 3), dtype=np.uint8))
    for mode, suffix in (("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png"), ("L", "bmp")):
        colour.convert(mode).resize((30 + 5 * len(mode), 40)).save(folder / f"{mode}.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=exif)
    batches = build_engine(tmp_path).predict(small_model(), data_path=folder)
    assert len(batches) == 6
    assert gather(batches, "raw_score").isfinite().all()
    turned = next(batch for batch in batches if "turned" in batch.image_path[0])
    assert turned.image.shape == torch.Size([1, 3, 32, 32])

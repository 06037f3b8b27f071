# SPDX-License-Identifier: Apache-2.0
"""The digits: what is on disk, who is in which set, and what a model is given."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, PredictDataset
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import TestSplitMode as SplitMode
from anomalib.models.image.ganomaly import Ganomaly as AnomalibGanomaly
from anomalib.pre_processing import PreProcessor
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import tv_tensors
from torchvision.transforms.v2 import RandomCrop, Resize

from ganomaly_plugin.data.digits import Digits
from tests.engine import build_engine

COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Scans of each digit, 1,797 in all, as scikit-learn's documentation gives them."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    Digits(folder).prepare_data()
    return folder


def set_up(root: Path, *args: Any, **kwargs: Any) -> Any:
    """Return a datamodule ready for use, untyped because anomalib declares each field of its samples as optional."""
    datamodule = Digits(root, *args, **kwargs)
    datamodule.setup()
    return datamodule


def contents(dataset: AnomalibDataset) -> set[bytes]:
    """Return the pixels of all images; all of scikit-learn's scans differ."""
    return {Image.open(path).tobytes() for path in dataset.samples.image_path}


class TestFiles:
    """What ``prepare_data`` writes."""

    def test_pixels_are_the_scans(self, root: Path) -> None:
        digits = load_digits()
        for index in (0, 1, 500, 1796):
            with Image.open(root / str(digits.target[index]) / f"{index:04}.png") as image:
                assert (image.mode, image.size) == ("L", (8, 8))
                written = np.array(image)
            # Back to 0..16 without a loss, and never further than half a grey level from the exact scaling.
            np.testing.assert_array_equal(np.round(written * (16 / 255)), digits.images[index])
            assert abs(written - digits.images[index] * 255 / 16).max() <= 0.5

    def test_known_levels(self, root: Path) -> None:
        """The first row of the first scan is 0 0 5 13 9 1 0 0; 5 * 255 / 16 = 79.7 and so on."""
        with Image.open(root / "0" / "0000.png") as image:
            assert np.array(image)[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]

    def test_one_folder_per_digit(self, root: Path) -> None:
        assert tuple(len(list((root / str(digit)).iterdir())) for digit in range(10)) == COUNTS

    def test_again_touches_nothing(self, root: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
        Digits(root, abnormal_class=3).prepare_data()
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before

    def test_what_is_written_is_said_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO"):
            for _ in range(2):
                set_up(tmp_path, 8).prepare_data()
        assert [record.message.split(" to ")[0] for record in caplog.records] == ["Wrote 1797 of 1797 digits"]

    def test_interrupted_run_is_completed(self, tmp_path: Path) -> None:
        """Some files are missing and one was being written when the first run was stopped."""
        Digits(tmp_path).prepare_data()
        expected = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
        for path in list(expected)[::7]:
            path.unlink()
        (tmp_path / "0" / "0000.0123.tmp").write_bytes(b"\x89PNG")
        datamodule = set_up(tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == expected
        assert len(datamodule.train_data) + len(datamodule.val_data) + len(datamodule.test_data) == 1797

    def test_several_at_a_time(self, tmp_path: Path, root: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: Digits(tmp_path).prepare_data(), range(4)))
        written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert written == {path.relative_to(root): path.read_bytes() for path in root.rglob("*.png")}


class TestSplit:
    """Who is in which set."""

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("digit", range(10))
    def test_sizes(self, root: Path, digit: int, seed: int) -> None:
        datamodule = set_up(root, digit, val_split_mode="none", seed=seed)
        n_normal = 1797 - COUNTS[digit]
        assert len(datamodule.train_data) == n_normal * 8 // 10
        assert len(datamodule.test_data) == n_normal - n_normal * 8 // 10 + COUNTS[digit]
        assert datamodule.train_data.samples.label_index.sum() == 0
        assert datamodule.test_data.samples.label_index.sum() == COUNTS[digit]

    def test_labels_tell_the_anomalous_digit(self, root: Path) -> None:
        samples = set_up(root, 8).test_data.samples
        is_eight = np.array([Path(path).parent.name == "8" for path in samples.image_path])
        np.testing.assert_array_equal(samples.label_index, is_eight)
        np.testing.assert_array_equal(samples.label, np.where(is_eight, "abnormal", "normal"))

    def test_no_image_is_in_two_sets(self, root: Path) -> None:
        datamodule = set_up(root, 8)
        sets = [contents(data) for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]
        assert len(set.union(*sets)) == sum(len(images) for images in sets) == 1797

    def test_seed(self, root: Path) -> None:
        first, again, other = (set_up(root, 8, seed=seed) for seed in (0, 0, 1))
        for subset in ("train_data", "val_data", "test_data"):
            assert contents(getattr(first, subset)) == contents(getattr(again, subset))
            assert contents(getattr(first, subset)) != contents(getattr(other, subset))

    def test_setup_again_changes_nothing(self, root: Path) -> None:
        datamodule = set_up(root, 8)
        before = [contents(datamodule.train_data), contents(datamodule.val_data), contents(datamodule.test_data)]
        datamodule.setup()
        assert [
            contents(datamodule.train_data),
            contents(datamodule.val_data),
            contents(datamodule.test_data),
        ] == before


class TestValidation:
    """Each of anomalib's modes. Digit 8: 1,623 normals, of which 1,298 train and 325 test; 174 anomalies."""

    def test_default_holds_out_training_normals(self, root: Path) -> None:
        datamodule = set_up(root, 8)
        assert (len(datamodule.train_data), len(datamodule.val_data), len(datamodule.test_data)) == (1169, 129, 499)
        assert not datamodule.val_data.has_anomalous

    def test_none(self, root: Path) -> None:
        datamodule = set_up(root, 8, val_split_mode="none")
        assert (len(datamodule.train_data), len(datamodule.test_data)) == (1298, 499)
        assert datamodule.val_dataloader() == []

    def test_same_as_test(self, root: Path) -> None:
        datamodule = set_up(root, 8, val_split_mode="same_as_test")
        assert len(datamodule.train_data) == 1298
        assert contents(datamodule.val_data) == contents(datamodule.test_data)

    def test_from_test(self, root: Path) -> None:
        datamodule = set_up(root, 8, val_split_mode="from_test", val_split_ratio=0.5)
        assert len(datamodule.train_data) == 1298
        assert len(datamodule.val_data) + len(datamodule.test_data) == 499
        assert datamodule.val_data.samples.label_index.sum() == 87
        assert not contents(datamodule.val_data) & contents(datamodule.test_data)

    def test_synthetic(self, root: Path) -> None:
        datamodule = set_up(root, 8, val_split_mode="synthetic")
        assert (len(datamodule.train_data), len(datamodule.val_data), len(datamodule.test_data)) == (1169, 129, 499)
        assert datamodule.val_data.samples.label_index.sum() == 64
        batch = next(iter(datamodule.val_dataloader()))
        assert batch.image.shape == (32, 3, 32, 32)
        assert datamodule.train_data[0].image.shape == (3, 8, 8)

    def test_official_splits_do_not_exist(self, root: Path) -> None:
        with pytest.raises(ValueError, match="one_vs_rest is 'normal', but must be one of abnormal"):
            Digits(root, 8, one_vs_rest="normal")


class TestBatches:
    """What a model is given."""

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_values(self, root: Path, num_workers: int) -> None:
        datamodule = set_up(root, 8, num_workers=num_workers)
        for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
            assert isinstance(next(iter(loader)), ImageBatch)
            batch = next(iter(loader))
            assert batch.image.shape == (32, 3, 8, 8)
            assert batch.image.dtype == torch.float32
            assert (batch.image.min(), batch.image.max()) == (0, 1)
            assert batch.gt_label.shape == (32,)
            for image, path in zip(batch.image, batch.image_path, strict=True):
                with Image.open(path) as file:
                    torch.testing.assert_close(image[0], torch.from_numpy(np.array(file)) / 255)
                assert torch.equal(image, image[:1].expand(3, 8, 8))

    def test_evaluation_keeps_every_image_in_order(self, root: Path) -> None:
        datamodule = set_up(root, 8, eval_batch_size=100)
        batches = list(datamodule.test_dataloader())
        assert [len(batch.image) for batch in batches] == [100, 100, 100, 100, 99]
        assert [path for batch in batches for path in batch.image_path] == list(datamodule.test_data.samples.image_path)

    def test_training_is_shuffled_and_drops_the_incomplete_batch(self, root: Path) -> None:
        """1,169 = 18 * 64 + 17."""
        datamodule = set_up(root, 8, train_batch_size=64)
        first, second = ([batch.image_path for batch in datamodule.train_dataloader()] for _ in range(2))
        assert [len(paths) for paths in first] == [64] * 18
        assert first != second

    @pytest.mark.parametrize(("batch_size", "lengths"), [(1169, [1169]), (1170, [1169]), (5000, [1169])])
    def test_batch_as_large_as_the_set_trains_on_all(self, root: Path, batch_size: int, lengths: list[int]) -> None:
        datamodule = set_up(root, 8, train_batch_size=batch_size)
        assert [len(batch.image) for batch in datamodule.train_dataloader()] == lengths

    def test_resizing_a_batch_equals_resizing_each_image(self, root: Path) -> None:
        resize = Resize((32, 32), antialias=True)
        originals = set_up(root, 8).train_data
        resized = set_up(root, 8, augmentations=resize).train_data
        for index, item in enumerate(resized.__getitems__(list(range(64)))):
            assert isinstance(item.image, tv_tensors.Image)
            assert torch.equal(item.image, resize(originals[index].image))

    def test_random_augmentations_differ_between_images(self, root: Path) -> None:
        dataset = set_up(root, 8, augmentations=RandomCrop(3)).train_data
        images = torch.stack([item.image for item in dataset.__getitems__([0, 1, 2, 3] * 8)])
        assert images.shape == (32, 3, 3, 3)
        assert len({image.numpy().tobytes() for image in images[::4]}) > 1

    def test_same_item_from_the_file_and_from_memory(self, root: Path) -> None:
        dataset = set_up(root, 8).train_data
        first, second = dataset[3], dataset[3]
        assert torch.equal(first.image, second.image)
        assert int(first.gt_label) == 0

    def test_pickled_datamodule_gives_the_same(self, root: Path) -> None:
        datamodule = set_up(root, 8)
        copy = pickle.loads(pickle.dumps(datamodule))
        assert torch.equal(copy.train_data[5].image, datamodule.train_data[5].image)


class TestArguments:
    """What is refused, and how."""

    @pytest.mark.parametrize("value", [-1, 10, "eight"])
    def test_unknown_digit(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"abnormal_class is {value!r}, .* 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"):
            Digits(tmp_path, abnormal_class=value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("ratio", [0, 1.0, -0.5])
    def test_ratio_outside_its_range(self, ratio: float) -> None:
        with pytest.raises(ValueError, match=rf"val_split_ratio is {ratio}, .*set val_split_mode to 'none'"):
            Digits(val_split_ratio=ratio)

    def test_validation_folder(self) -> None:
        with pytest.raises(ValueError, match=r"val_split_mode is 'from_dir', .* from_train"):
            Digits(val_split_mode="from_dir")


class TestInAnomalib:
    """The datamodule among anomalib's own models and tools."""

    @pytest.mark.parametrize("val_split_mode", ["none", "from_train"])
    def test_trains_and_tests_a_model(self, root: Path, tmp_path: Path, val_split_mode: str) -> None:
        model = AnomalibGanomaly(
            n_features=4,
            latent_vec_size=4,
            pre_processor=PreProcessor(Resize((64, 64), antialias=True)),
            visualizer=False,
        )
        engine = build_engine(tmp_path, limit_train_batches=2, logger=False)
        datamodule: Any = Digits(root, 8, eval_batch_size=64, val_split_mode=val_split_mode)
        engine.fit(model, datamodule=datamodule)
        (results,) = engine.test(model, datamodule=datamodule)
        assert 0 <= results["image_AUROC"] <= 1
        assert datamodule.train_data[0].image.shape == (3, 64, 64)
        assert (tmp_path / "Ganomaly" / "Digits" / "abnormal-8").is_dir()

    def test_prediction_reads_the_files(self, root: Path) -> None:
        assert len(PredictDataset(root / "8")) == 174


def test_keys_of_stock_configurations(root: Path) -> None:
    """What anomalib's own configurations say of the split, and what only others can do."""
    stock = {"test_split_mode": "from_dir", "test_split_ratio": 0.2, "seed": None}
    first, second = set_up(root, 8, **stock), set_up(root, 8)
    assert first.train_data.samples.image_path.equals(second.train_data.samples.image_path)
    assert first.test_data.samples.image_path.equals(second.test_data.samples.image_path)
    set_up(root, 8, test_split_mode=SplitMode.FROM_DIR)
    for mode in ("synthetic", SplitMode.NONE):
        with pytest.raises(ValueError, match="the test set follows from one_vs_rest: leave it out"):
            Digits(root, test_split_mode=mode)

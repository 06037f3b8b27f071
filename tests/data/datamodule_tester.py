# SPDX-License-Identifier: Apache-2.0
"""What every datamodule of this package must do."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.data.datasets.base.image import AnomalibDataset

from ganomaly_plugin.data.in_memory import InMemoryDataset


def contents(dataset: AnomalibDataset) -> list[bytes]:
    """Return the pixels of all images, in the order of the data set."""
    if isinstance(dataset, InMemoryDataset):
        return [image.tobytes() for image in dataset.images[dataset.samples.position]]
    return [dataset[index].image.numpy().tobytes() for index in range(len(dataset))]


def make_layout(root: Path, parts: dict[str, list[Path]]) -> Path:
    """Link images into folders."""
    for part, paths in parts.items():
        (root / part).mkdir(parents=True)
        for path in paths:
            (root / part / path.name).symlink_to(path)
    return root


class DatamoduleTester:
    """Subclasses build a datamodule and say how many images of each kind it has.

    The sizes are those of ``val_split_mode="none"``.
    """

    n_train: int
    n_test_normal: int
    n_test_anomalous: int
    image_shape: tuple[int, int, int]

    def build(self, **kwargs: Any) -> AnomalibDataModule:
        """Build the datamodule under test with further arguments."""
        raise NotImplementedError

    def set_up(self, **kwargs: Any) -> Any:
        """Return a datamodule ready for use, untyped because anomalib declares each field as optional."""
        datamodule = self.build(**kwargs)
        datamodule.prepare_data()
        datamodule.setup()
        return datamodule

    @pytest.fixture(scope="class")
    @classmethod
    def datamodule(cls) -> Any:
        """The datamodule with its defaults."""
        return cls().set_up()

    def test_lengths(self) -> None:
        datamodule = self.set_up(val_split_mode="none")
        assert len(datamodule.train_data) == self.n_train
        assert len(datamodule.test_data) == self.n_test_normal + self.n_test_anomalous
        assert datamodule.test_data.samples.label_index.sum() == self.n_test_anomalous
        assert datamodule.train_data.samples.label_index.sum() == 0
        assert datamodule.val_dataloader() == []

    def test_validation_is_held_out_from_training(self, datamodule: Any) -> None:
        held_out = int(self.n_train * 0.1)
        assert len(datamodule.val_data) == held_out
        assert len(datamodule.train_data) == self.n_train - held_out
        assert len(datamodule.test_data) == self.n_test_normal + self.n_test_anomalous
        assert not datamodule.val_data.has_anomalous

    def test_validation_from_test_is_labelled_and_removed(self) -> None:
        datamodule = self.set_up(val_split_mode="from_test", val_split_ratio=0.5)
        assert len(datamodule.train_data) == self.n_train
        assert datamodule.val_data.samples.label_index.sum() == self.n_test_anomalous // 2
        assert len(datamodule.val_data) + len(datamodule.test_data) == self.n_test_normal + self.n_test_anomalous
        assert not set(datamodule.val_data.samples.image_path) & set(datamodule.test_data.samples.image_path)

    def test_subsets_share_no_image(self, datamodule: Any) -> None:
        sets = [set(contents(data)) for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]
        assert sum(map(len, sets)) == len(set.union(*sets))

    def test_labels_belong_to_their_images(self, datamodule: Any) -> None:
        """In the order of the samples, each item's label and path are those of the table."""
        samples = datamodule.test_data.samples
        for index in range(0, len(samples), max(1, len(samples) // 50)):
            item = datamodule.test_data[index]
            assert int(item.gt_label) == samples.label_index[index]
            assert item.image_path == samples.image_path[index]
            assert item.image.shape == self.image_shape
            assert -1e-5 <= item.image.min() <= item.image.max() <= 1 + 1e-5  # Resizing rounds.

    def test_set_up_again_changes_nothing(self, datamodule: Any) -> None:
        before = [
            list(getattr(datamodule, name).samples.image_path) for name in ("train_data", "val_data", "test_data")
        ]
        datamodule.prepare_data()
        datamodule.setup()
        after = [list(getattr(datamodule, name).samples.image_path) for name in ("train_data", "val_data", "test_data")]
        assert before == after

    def test_same_seed_same_split(self, datamodule: Any) -> None:
        again, other = self.set_up(), self.set_up(seed=1)
        assert list(again.val_data.samples.image_path) == list(datamodule.val_data.samples.image_path)
        assert list(other.val_data.samples.image_path) != list(datamodule.val_data.samples.image_path)

    def test_pickles(self, datamodule: Any) -> None:
        """Worker processes that are not forked get a pickled copy."""
        copy = pickle.loads(pickle.dumps(datamodule))
        assert torch.equal(copy.train_data[3].image, datamodule.train_data[3].image)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_batches_are_those_of_the_items(self, num_workers: int) -> None:
        datamodule = self.set_up(num_workers=num_workers, eval_batch_size=16, train_batch_size=8)
        batch: ImageBatch = next(iter(datamodule.test_dataloader()))
        assert isinstance(batch, ImageBatch)
        for position in (0, 7, 15):
            item = datamodule.test_data[position]
            assert torch.equal(batch.image[position], item.image)
            assert bool(batch.gt_label[position]) == bool(item.gt_label)
            assert batch.image_path[position] == item.image_path
        assert len(next(iter(datamodule.train_dataloader())).image) == 8

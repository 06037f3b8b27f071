# SPDX-License-Identifier: Apache-2.0
"""The labelled sets, each on real images, by the paper's protocol and the others."""

import gc
import hashlib
import pickle
import weakref
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.models.image.ganomaly import Ganomaly as AnomalibGanomaly
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2 import Resize

from ganomaly_plugin import CIFAR10, MNIST, ClassFolder, Digits, FashionMNIST, GANomaly
from ganomaly_plugin.data.in_memory import InMemoryDataset
from ganomaly_plugin.image_reader import read_image
from tests.engine import build_engine

from .datamodule_tester import DatamoduleTester, make_layout

MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
"""Images of each digit in the official splits, as published with the set."""


class TestDigits(DatamoduleTester):
    """Digit 8 anomalous: 174 of 1,797."""

    n_train, n_test_normal, n_test_anomalous = 1298, 325, 174
    image_shape = (3, 8, 8)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = tmp_path_factory.mktemp("digits")

    def build(self, **kwargs: Any) -> Digits:
        return Digits(self.folder, 8, **kwargs)


class TestMNIST(DatamoduleTester):
    """Digit 2 anomalous by the paper's protocol."""

    n_train = (70_000 - 6_990) * 8 // 10
    n_test_normal = 70_000 - 6_990 - n_train
    n_test_anomalous = 6_990
    image_shape = (3, 28, 28)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def root(cls, real_data: Path) -> None:
        cls.folder = real_data / "mnist"

    def build(self, **kwargs: Any) -> MNIST:
        return MNIST(self.folder, abnormal_class=2, **kwargs)

    @pytest.mark.parametrize(
        ("arguments", "n_train", "n_test_normal", "n_test_anomalous"),
        [
            (
                {"one_vs_rest": "abnormal_official", "abnormal_class": "2"},
                60_000 - MNIST_TRAIN[2],
                10_000 - MNIST_TEST[2],
                MNIST_TRAIN[2] + MNIST_TEST[2],
            ),
            ({"one_vs_rest": "normal", "normal_class": 2}, MNIST_TRAIN[2], MNIST_TEST[2], 10_000 - MNIST_TEST[2]),
        ],
        ids=["abnormal_official", "normal"],
    )
    def test_official_splits(
        self, arguments: dict[str, Any], n_train: int, n_test_normal: int, n_test_anomalous: int
    ) -> None:
        datamodule: Any = MNIST(self.folder, val_split_mode="none", **arguments)
        datamodule.setup()
        assert datamodule.train_data.samples.image_path.str.startswith("mnist/train/").all()
        assert len(datamodule.train_data) == n_train
        assert len(datamodule.test_data) == n_test_normal + n_test_anomalous
        assert datamodule.test_data.samples.label_index.sum() == n_test_anomalous


def test_fashion_mnist(real_data: Path, tmp_path: Path) -> None:
    """MNIST's files in Fashion-MNIST's place, which has the same format: class 9, the ankle boot."""
    (tmp_path / "FashionMNIST").symlink_to(real_data / "mnist" / "MNIST")
    datamodule: Any = FashionMNIST(tmp_path, abnormal_class="Ankle Boot", val_split_mode="none")
    datamodule.setup()
    assert len(datamodule.train_data) == (70_000 - 6_958) * 8 // 10
    assert datamodule.test_data.samples.label_index.sum() == 6_958
    assert datamodule.test_data[0].image_path.startswith("fashionmnist/")
    assert datamodule.category == "abnormal-ankle boot"


@pytest.fixture(scope="module")
def cifar10_folders(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small part of the JPEG copies of CIFAR-10, as folders: 50 training and 20 test images a class."""
    root = tmp_path_factory.mktemp("cifar10")
    with zipfile.ZipFile(real_data / "cifar10_jpeg.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".jpg") and int(Path(name).stem) < (50 if "/train/" in name else 20):
                archive.extract(name, root)
    return root / "cifar10"


class TestClassFolder(DatamoduleTester):
    """Cars anomalous among the JPEG copies of CIFAR-10: 9 x 70 normals."""

    n_train, n_test_normal, n_test_anomalous = 504, 126, 70
    image_shape = (3, 32, 32)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def root(cls, cifar10_folders: Path) -> None:
        cls.folder = cifar10_folders

    def build(self, **kwargs: Any) -> ClassFolder:
        return ClassFolder(self.folder, abnormal_class="automobile", **kwargs)

    def test_small_images_stay_in_memory(self, datamodule: Any) -> None:
        assert isinstance(datamodule.train_data, InMemoryDataset)
        item = datamodule.train_data[5]
        with Image.open(item.image_path) as file:
            expected = np.array(file.convert("RGB")) / 255
        np.testing.assert_allclose(item.image.permute(1, 2, 0), expected, atol=1e-6)

    def test_cars_of_both_splits_keep_their_own_pictures(self, datamodule: Any, tmp_path: Path) -> None:
        """anomalib names a picture by its path below the folder that bears the set's name."""
        from anomalib.utils.path import generate_output_filename

        paths = datamodule.test_data.samples.image_path
        pictures = {generate_output_filename(p, tmp_path, datamodule.name, datamodule.category) for p in paths}
        assert len(pictures) == len(paths)


class TestUBALayout(DatamoduleTester):
    """Real X-ray images in the layout of GANomaly's code, of many sizes, so read from their files."""

    n_train, n_test_normal, n_test_anomalous = 60, 40, 100
    image_shape = (3, 48, 64)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def root(cls, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        normal = sorted((real_data / "sixray_small" / "normal").iterdir())
        anomalous = sorted((real_data / "sixray_small" / "threat").iterdir())
        parts = {"train/0.normal": normal[:60], "test/0.normal": normal[60:], "test/1.abnormal": anomalous}
        cls.folder = make_layout(tmp_path_factory.mktemp("uba"), parts)

    def build(self, **kwargs: Any) -> ClassFolder:
        resize = Resize((48, 64), antialias=True)
        return ClassFolder(self.folder, one_vs_rest="normal", normal_class="0.normal", augmentations=resize, **kwargs)

    def test_large_images_stay_in_their_files(self, datamodule: Any) -> None:
        assert type(datamodule.train_data) is AnomalibDataset


class TestCIFAR10(DatamoduleTester):
    """The JPEG copies in the official release's format: 9 x 70 normals."""

    n_train, n_test_normal, n_test_anomalous = 504, 126, 70
    image_shape = (3, 32, 32)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def root(cls, cifar10_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
        cls.folder = tmp_path_factory.mktemp("release")
        classes = sorted(folder.name for folder in (cifar10_folders / "train").iterdir())
        files = {"meta": {"label_names": classes}}
        for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
            paths = sorted((cifar10_folders / split).rglob("*.jpg"))
            pixels = [np.array(Image.open(path)).transpose(2, 0, 1).ravel() for path in paths]
            files[name] = {"data": np.stack(pixels), "labels": [classes.index(path.parent.name) for path in paths]}
        (cls.folder / "cifar-10-batches-py").mkdir()
        sums = {}
        for name, content in files.items():
            data = pickle.dumps(content)
            (cls.folder / "cifar-10-batches-py" / name).write_bytes(data)
            sums[name] = hashlib.md5(data).hexdigest()
        patch = pytest.MonkeyPatch()  # torchvision compares check sums, and these files are not the official ones.
        patch.setattr(datasets.CIFAR10, "train_list", [("data_batch_1", sums["data_batch_1"])])
        patch.setattr(datasets.CIFAR10, "test_list", [("test_batch", sums["test_batch"])])
        patch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"filename": "meta", "md5": sums["meta"]})
        patch.setitem(datasets.CIFAR10.meta, "key", "label_names")
        yield
        patch.undo()

    def build(self, **kwargs: Any) -> CIFAR10:
        return CIFAR10(self.folder, abnormal_class="car", **kwargs)

    def test_names(self, datamodule: Any) -> None:
        """Index 1 is the automobile, called car in the paper."""
        assert CIFAR10(self.folder, abnormal_class="automobile").chosen_class == 1
        assert CIFAR10(self.folder, abnormal_class=1).category == datamodule.category == "abnormal-car"

    def test_same_pixels_as_the_folders(self, datamodule: Any, cifar10_folders: Path) -> None:
        folders: Any = ClassFolder(cifar10_folders, abnormal_class="automobile")
        folders.setup()
        first, second = (
            {
                data.test_data[i].image.numpy().tobytes()
                for i in range(len(data.test_data))
                if data.test_data[i].gt_label
            }
            for data in (datamodule, folders)
        )
        assert first == second


def reference_draw(datamodule: Any, max_train: int, max_test: int) -> list[list[str]]:
    """Restate the draw of the published small-budget figures: training, then normal and anomalous test images."""
    generator = np.random.default_rng(datamodule.seed)
    drawn = []
    for samples, labels, count in (
        (datamodule.train_data.samples, (0,), max_train),
        (datamodule.test_data.samples, (0, 1), max_test),
    ):
        rows = [
            row
            for label in labels
            for row in generator.permutation(np.flatnonzero(samples.label_index == label))[:count]
        ]
        drawn.append(sorted(samples.image_path[rows]))
    return drawn


class TestLimits:
    """Fewer images than there are, drawn by the seed."""

    @pytest.fixture(params=["memory", "files"])
    def build(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        """How to build a set whose images lie in memory, or in files of two sizes."""
        if request.param == "memory":
            return partial(Digits, tmp_path, 8)
        for split in ("train", "test"):
            for name in ("good", "bad"):
                (tmp_path / split / name).mkdir(parents=True)
                for index in range(30):
                    Image.new("L", (8, 8 + index % 2)).save(tmp_path / split / name / f"{index:02}.png")
        return partial(ClassFolder, tmp_path, abnormal_class="bad")

    @pytest.mark.parametrize("seed", [0, 7])
    def test_same_images_as_in_the_published_figures(self, build: Any, seed: int) -> None:
        whole, limited = (
            build(seed=seed, val_split_mode="none", **limits)
            for limits in ({}, {"max_train_images": 20, "max_test_images": 10})
        )
        whole.setup()
        limited.setup()
        drawn = [list(data.samples.image_path) for data in (limited.train_data, limited.test_data)]
        assert drawn == reference_draw(whole, 20, 10)
        assert limited.test_data.samples.label_index.tolist().count(1) == 10

    def test_validation_is_held_out_from_the_drawn_images(self, build: Any) -> None:
        datamodule = build(max_train_images=20)
        datamodule.setup()
        assert (len(datamodule.train_data), len(datamodule.val_data)) == (18, 2)

    def test_test_images_do_not_depend_on_the_training_limit(self, build: Any) -> None:
        first, second = (build(max_test_images=5, max_train_images=limit) for limit in (None, 15))
        first.setup()
        second.setup()
        assert list(first.test_data.samples.image_path) == list(second.test_data.samples.image_path)

    def test_limit_above_the_number_keeps_all(self, build: Any) -> None:
        whole, limited = build(), build(max_train_images=10_000, max_test_images=10_000)
        whole.setup()
        limited.setup()
        for name in ("train_data", "val_data", "test_data"):
            assert list(getattr(limited, name).samples.image_path) == list(getattr(whole, name).samples.image_path)


class TestRefused:
    """Wrong arguments, before anything is read."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"one_vs_rest": "rest"}, "one_vs_rest is 'rest', but must be one of abnormal, abnormal_official, normal"),
            ({"abnormal_class": 10}, "abnormal_class is 10, but must be one of 0, 1, .* 9, or its number"),
            ({"abnormal_class": "two"}, "abnormal_class is 'two'"),
            ({"normal_class": 2}, "normal_class is 2, but with one_vs_rest='abnormal' abnormal_class chooses"),
            ({"one_vs_rest": "normal", "abnormal_class": 2}, "abnormal_class is 2, .* normal_class chooses"),
            ({"seed": -1}, "seed is -1"),
            ({"max_train_images": 0}, "max_train_images is 0, but must be at least 1, or None for all images"),
            ({"max_test_images": -5}, "max_test_images is -5, but must be at least 1"),
            ({"val_split_ratio": 1.0}, "val_split_ratio is 1.0"),
            ({"val_split_mode": "half"}, "val_split_mode is 'half', but must be one of none, same_as_test"),
        ],
        ids=str,
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MNIST(**arguments)

    def test_folder_without_classes(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"holds no images: expected are folders .*\{train,test\}/<class>"):
            ClassFolder(tmp_path)

    def test_unknown_folder(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            (tmp_path / split / "good").mkdir(parents=True)
        with pytest.raises(ValueError, match="normal_class is 'fine', but must be one of good"):
            ClassFolder(tmp_path, one_vs_rest="normal", normal_class="fine")

    def test_empty_folder(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            (tmp_path / split / "good").mkdir(parents=True)
        datamodule = ClassFolder(tmp_path, one_vs_rest="normal", normal_class="good")
        with pytest.raises(FileNotFoundError, match=r"train/good' holds no image"):
            datamodule.setup()


def test_small_deep_images_keep_their_precision(tmp_path: Path) -> None:
    """16-bit grey levels that differ by less than an 8-bit step."""
    for split in ("train", "test"):
        (tmp_path / split / "good").mkdir(parents=True)
        for level in (1000, 1010, 1020):
            Image.fromarray(np.full((8, 8), level, dtype=np.uint16)).save(tmp_path / split / "good" / f"{level}.png")
    datamodule = ClassFolder(tmp_path, one_vs_rest="normal", normal_class="good", val_split_mode="none")
    datamodule.setup()
    levels = [float(item.image.mean()) * 65535 for item in datamodule.train_data]
    assert levels == pytest.approx([1000, 1010, 1020], abs=0.01)


def test_small_photographs_are_turned(tmp_path: Path) -> None:
    """Among others that are not; a set in which they make two sizes is read from its files."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        (tmp_path / split / "good").mkdir(parents=True)
        for index in range(4):
            size = (24, 16) if index % 2 else (16, 24)
            image = Image.new("L", size, 255 if index % 2 else 0)
            image.save(tmp_path / split / "good" / f"{index}.png", exif=exif if index % 2 else None)
    datamodule: Any = ClassFolder(tmp_path, one_vs_rest="normal", normal_class="good", val_split_mode="none")
    datamodule.setup()
    assert isinstance(datamodule.train_data, InMemoryDataset)
    assert [item.image.shape for item in datamodule.train_data] == [(3, 24, 16)] * 4
    Image.new("L", (24, 16)).save(tmp_path / "train" / "good" / "4.png")
    datamodule.setup()
    assert [item.image.shape for item in datamodule.train_data] == [(3, 24, 16)] * 4 + [(3, 16, 24)]


def test_images_go_with_their_datamodule(tmp_path: Path) -> None:
    """Names find images only while the datamodule lives, so that many sets one after another do not add up."""
    datamodule: Any = Digits(tmp_path, 8, val_split_mode="none")
    datamodule.setup()
    images = weakref.ref(datamodule.train_data.images)
    del datamodule
    gc.collect()
    assert images() is None


class TestNamesWithoutFiles:
    """Images that lie in one big file."""

    @pytest.fixture(scope="class")
    @classmethod
    def datamodule(cls, real_data: Path) -> MNIST:
        return MNIST(real_data / "mnist", abnormal_class=2)

    def test_readers_find_them(self, datamodule: Any) -> None:
        datamodule.setup()
        item = datamodule.test_data[0]
        assert item.image_path.startswith(("mnist/train/", "mnist/test/"))
        assert not Path(item.image_path).exists()
        assert torch.equal(read_image(item.image_path, as_tensor=True), item.image)

    def test_name_is_the_number_in_the_official_file(self, datamodule: Any, real_data: Path) -> None:
        datamodule.setup()
        original = datasets.MNIST(real_data / "mnist", train=True)
        samples = datamodule.train_data.samples
        row = int(np.flatnonzero(samples.image_path.str.startswith("mnist/train/"))[100])
        number = int(Path(samples.image_path[row]).stem)
        assert torch.equal((datamodule.train_data[row].image[0] * 255).round().byte(), original.data[number])
        assert original.targets[number] != 2

    @pytest.mark.parametrize("stock", [True, False])
    def test_pictures_are_drawn(self, datamodule: Any, tmp_path: Path, stock: bool) -> None:
        """By anomalib's visualiser with anomalib's model, and by ours."""
        model: Any
        if stock:
            resize = PreProcessor(Resize((32, 32), antialias=True))
            model = AnomalibGanomaly(n_features=4, latent_vec_size=4, pre_processor=resize)
        else:
            model = GANomaly(image_size=28, n_features=4, latent_vec_size=4, input_channels=1)
        engine = build_engine(tmp_path, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1, logger=False)
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule)
        pictures = {path.name: path for path in tmp_path.rglob("*.png")}
        assert len(pictures) == 64
        item = datamodule.test_data[3]
        with Image.open(pictures[Path(item.image_path).name]) as picture:
            shown = np.array(picture.convert("L"))[60:256, :256] / 255  # The input, below its title.
        original = Image.fromarray((read_image(item.image_path)[..., 0] * 255).round().astype(np.uint8))
        expected = np.array(original.resize((256, 256)))[60:] / 255
        assert expected.std() > 0.1
        assert abs(shown - expected).mean() < 0.02

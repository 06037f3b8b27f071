# SPDX-License-Identifier: Apache-2.0
"""Large images cut into patches and put together again."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2.functional import resize

from ganomaly_plugin import Digits, FullImages, GANomaly, Patches
from ganomaly_plugin.data import patches
from ganomaly_plugin.data.patches import Cutter
from ganomaly_plugin.image_reader import read_image
from tests.engine import build_engine

from .datamodule_tester import DatamoduleTester, make_layout


@pytest.fixture(scope="module")
def xrays(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve real X-ray images in the layout of GANomaly's code."""
    normal = sorted((real_data / "sixray_small" / "normal").iterdir())
    anomalous = sorted((real_data / "sixray_small" / "threat").iterdir())
    parts = {"train/0.normal": normal[:6], "test/0.normal": normal[6:9], "test/1.abnormal": anomalous[:3]}
    return make_layout(tmp_path_factory.mktemp("xray"), parts)


def count(paths: list[Path]) -> int:
    """Number of 64-pixel patches at stride 32 that cover images to the border."""
    total = 0
    for path in paths:
        with Image.open(path) as image:
            rows, columns = (-(-(side - 64) // 32) + 1 for side in (image.height, image.width))
        total += rows * columns
    return total


class TestXrayPatches(DatamoduleTester):
    """Without annotations all patches of an anomalous image are anomalous."""

    image_shape = (3, 64, 64)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def root(cls, xrays: Path) -> None:
        cls.folder = xrays
        cls.n_train = count(list((xrays / "train" / "0.normal").iterdir()))
        cls.n_test_normal = count(list((xrays / "test" / "0.normal").iterdir()))
        cls.n_test_anomalous = count(list((xrays / "test" / "1.abnormal").iterdir()))

    def build(self, **kwargs: Any) -> Patches:
        return Patches(self.folder, **kwargs)

    def test_subsets_share_no_image(self, datamodule: Any) -> None:
        """Blank patches look alike, so this is about the images that they come from."""
        train, test = (
            {Path(name).parent for name in data.samples.image_path}
            for data in (datamodule.train_data, datamodule.test_data)
        )
        assert not train & test
        assert (len(train), len(test)) == (6, 6)

    def test_first_patch_is_the_corner_of_the_enlarged_image(self, datamodule: Any) -> None:
        item = datamodule.test_data[0]
        image = read_image(Path(item.image_path).parent, as_tensor=True)
        height, width = ((-(-(side - 64) // 32)) * 32 + 64 for side in image.shape[-2:])
        enlarged = torch.nn.functional.interpolate(image[None], (height, width))[0]
        assert abs(item.image - enlarged[:, :64, :64]).mean() < 0.02


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 128x96 pixels, small enough to count patches by hand: 3 rows of 2 at stride 32."""
    root = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    for part, number in (("train/0.normal", 2), ("test/0.normal", 1), ("test/1.abnormal", 3)):
        (root / part).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 256, (128, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / f"{index}.png")
    mask = np.zeros((128, 96), dtype=np.uint8)
    mask[0:20, 0:20] = 255  # Only in the first patch: 400 of 4,096 pixels.
    (root / "ground_truth" / "1.abnormal").mkdir(parents=True)
    Image.fromarray(mask).save(root / "ground_truth" / "1.abnormal" / "0.png")
    (root / "boxes.csv").write_text(
        "image,x_min,y_min,x_max,y_max\n"
        "test/1.abnormal/1.png,70,40,90,60\n"  # In the right column: rows 0 to 63 and 32 to 95.
        "test/1.abnormal/1.png,0,124,10,128\n"  # 40 pixels, less than 5 % of the last patch on the left.
    )
    return root


class TestLabels:
    """Which patches are anomalous."""

    @pytest.fixture(scope="class")
    @classmethod
    def labels(cls, tiles: Path) -> dict[str, list[int]]:
        datamodule: Any = Patches(tiles, val_split_mode="none")
        datamodule.setup()
        samples = datamodule.test_data.samples
        return {
            f"{path.parent.parent.name}/{path.parent.name}": list(
                samples.label_index[samples.image_path.str.startswith(f"{path.parent}/")]
            )
            for path in map(Path, samples.image_path)
        }

    def test_mask(self, labels: dict[str, list[int]]) -> None:
        assert labels["1.abnormal/0.png"] == [1, 0, 0, 0, 0, 0]

    def test_boxes(self, labels: dict[str, list[int]]) -> None:
        assert labels["1.abnormal/1.png"] == [0, 1, 0, 1, 0, 0]

    def test_no_annotation(self, labels: dict[str, list[int]]) -> None:
        assert labels["1.abnormal/2.png"] == [1] * 6

    def test_normal_image(self, labels: dict[str, list[int]]) -> None:
        assert labels["0.normal/0.png"] == [0] * 6


class TestPixels:
    """What a patch holds."""

    @pytest.mark.parametrize("size", [(64, 64), (65, 64), (96, 127), (301, 203), (128, 1001)])
    @pytest.mark.parametrize(("side", "stride"), [(64, 32), (50, 50), (48, 7)])
    def test_equals_the_tiler(self, tmp_path: Path, size: tuple[int, int], side: int, stride: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        expected = Tiler(side, stride, mode=ImageUpscaleMode.INTERPOLATION).tile(
            torch.from_numpy(pixels).permute(2, 0, 1)
        )
        cutter = Cutter(side, stride)
        rows, columns = cutter.count(size)
        assert rows * columns == len(expected)
        for number in range(0, len(expected), 1 + len(expected) // 50):
            patch = torch.from_numpy(cutter.cut(tmp_path / "image.png", number)).permute(2, 0, 1)
            assert torch.equal(patch.float(), expected[number])

    def test_deep_images_keep_their_levels(self, tmp_path: Path) -> None:
        """An X-ray image of 200 levels within one step of 8 bits, everywhere."""
        levels = (1000 + np.arange(64 * 96) % 200).reshape(64, 96).astype(np.uint16)
        for part in ("train/0.normal", "test/0.normal", "test/1.abnormal"):
            (tmp_path / part).mkdir(parents=True)
            for index in range(4):
                Image.fromarray(levels).save(tmp_path / part / f"{index}.png")
        datamodule: Any = Patches(tmp_path, val_split_mode="none")
        datamodule.setup()
        item = datamodule.train_data[0]
        assert item.image.dtype == torch.float32
        expected = torch.from_numpy(levels[:, :64].astype(np.float32)) / 65535
        for image in (item.image, read_image(item.image_path, as_tensor=True)):
            torch.testing.assert_close(image, expected.expand(3, -1, -1), atol=1e-7, rtol=0)
        datamodule = Patches(tmp_path, val_split_mode="synthetic", val_split_ratio=0.5)
        datamodule.setup()
        kept = next(item for item in datamodule.val_data if not item.gt_label)
        assert len(kept.image.unique()) == 200

    def test_is_read_when_it_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set up without pixels; then a bounded number of images stays decoded, for all subsets together."""
        for part in ("train/0.normal", "test/0.normal", "test/1.abnormal"):
            (tmp_path / part).mkdir(parents=True)
            for index in range(10):
                Image.new("RGB", (200, 200), (index, 0, 0)).save(tmp_path / part / f"{index}.jpg")
        monkeypatch.setattr(patches, "CACHE_BYTES", 3 * 200 * 200 * 3)
        datamodule: Any = Patches(tmp_path)
        datamodule.setup()
        held = datamodule.cutter._decoded
        assert not held
        for data in (datamodule.train_data, datamodule.val_data, datamodule.test_data):
            assert data.cutter is datamodule.cutter
            for index in range(len(data)):
                assert abs(float(data[index].image[0].mean()) * 255 - int(Path(data[index].image_path).parent.stem)) < 2
        assert len(held) == 3
        assert len(pickle.dumps(datamodule)) < 1_000_000

    def test_photographs_are_turned_with_their_masks(self, tmp_path: Path) -> None:
        """Patches, masks and boxes are those of the image the right way up."""
        exif = Image.Exif()
        exif[0x0112] = 6
        for part in ("train/0.normal", "test/0.normal", "test/1.abnormal"):
            (tmp_path / part).mkdir(parents=True)
            Image.new("RGB", (96, 64)).save(tmp_path / part / "0.jpg", exif=exif)
        mask = np.zeros((64, 96), dtype=np.uint8)
        mask[:, 70:] = 255  # At the right; below, once it is turned.
        (tmp_path / "ground_truth" / "1.abnormal").mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / "ground_truth" / "1.abnormal" / "0.png")
        datamodule: Any = Patches(tmp_path, val_split_mode="none")
        datamodule.setup()
        samples = datamodule.test_data.samples
        anomalous = samples[samples.image_path.str.contains("abnormal")]
        assert list(anomalous.label_index) == [0, 1]


class TestAssembly:
    """From patches back to images."""

    @pytest.fixture
    def datamodule(self, tiles: Path) -> Any:
        datamodule: Any = Patches(tiles, val_split_mode="none", eval_batch_size=5)
        datamodule.setup()
        return datamodule

    def test_map_score_and_label(self, datamodule: Any) -> None:
        """The patch's own grey values as map come back as the grey image; the highest score counts."""
        batches = list(datamodule.test_dataloader())
        for batch in batches:
            batch.anomaly_map = batch.image.mean(1)
            batch.pred_score = batch.image.flatten(1)[:, 0]
            batch.pred_label = batch.pred_score > 0.9
        items = datamodule.assemble(list(reversed(batches)))
        assert [Path(item.image_path).name for item in items] == ["0.png", "0.png", "1.png", "2.png"]
        assert [bool(item.gt_label) for item in items] == [False, True, True, True]
        for item in items:
            image = read_image(item.image_path, as_tensor=True)
            torch.testing.assert_close(item.anomaly_map, image.mean(0), atol=1e-5, rtol=0)
            corners = image[0, 0:65:32, 0:33:32]
            torch.testing.assert_close(item.pred_score, corners.max(), atol=1e-5, rtol=0)
            assert bool(item.pred_label) == bool((corners > 0.9).any())

    def test_smaller_maps_are_enlarged(self, datamodule: Any) -> None:
        batches = list(datamodule.test_dataloader())
        for batch in batches:
            batch.anomaly_map = resize(batch.image.mean(1), [32, 32])
            batch.pred_score = batch.image.mean((1, 2, 3))
        assert datamodule.assemble(batches)[0].anomaly_map.shape == (128, 96)

    def test_missing_patches_are_refused(self, datamodule: Any) -> None:
        batches: list[ImageBatch] = list(datamodule.test_dataloader())
        for batch in batches:
            batch.pred_score = batch.image.mean((1, 2, 3))
        with pytest.raises(ValueError, match=r"5 of 6 patches of .*0.png' have no prediction"):
            datamodule.assemble(batches[1:])

    def test_in_a_test_run(self, tiles: Path, tmp_path: Path) -> None:
        """The logged figure is that of the highest raw score in each image, and there is a picture of each image."""
        datamodule = Patches(tiles, val_split_mode="none")
        model = GANomaly(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
        engine = build_engine(tmp_path, callbacks=[FullImages()], logger=False)
        engine.fit(model, datamodule=datamodule)
        (results,) = engine.test(model, datamodule=datamodule)
        items = datamodule.assemble(engine.predict(model, datamodule=datamodule))
        expected = roc_auc_score([bool(i.gt_label) for i in items], [float(i.pred_score) for i in items])
        assert results["full_image_AUROC"] == pytest.approx(expected)
        pictures = list(tmp_path.rglob("full_images/*/*.png"))
        assert len(pictures) == 4


class TestRefused:
    """Wrong arguments and files."""

    @pytest.fixture
    def unannotated(self, tmp_path: Path, tiles: Path) -> Path:
        """The same images, without boxes and masks."""
        for part in ("train", "test"):
            (tmp_path / part).symlink_to(tiles / part)
        return tmp_path

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"stride": 65}, "stride is 65, but must lie between 1 and patch_size, which is 64"),
            ({"anomalous_fraction": 0.0}, r"anomalous_fraction is 0.0, but must lie in \(0, 1\]"),
            ({"normal_class": "good"}, "normal_class is 'good', but must be one of 0.normal, 1.abnormal"),
        ],
        ids=str,
    )
    def test_arguments(self, tiles: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Patches(tiles, **arguments)

    def test_image_smaller_than_a_patch(self, tiles: Path) -> None:
        with pytest.raises(ValueError, match=r"0.png' has \(128, 96\) pixels, less than a patch of 100"):
            Patches(tiles, patch_size=100).setup()

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            ("image,x,y\n", ValueError, r"has the columns \['image', 'x', 'y'\], but must have"),
            ("image,x_min,y_min,x_max,y_max\nlost.png,0,0,1,1\n", FileNotFoundError, "not there: lost.png"),
            (
                "image,x_min,y_min,x_max,y_max\ntest/1.abnormal/1.png,-5,0,9,9\n",
                ValueError,
                "a box without a pixel.*-5.*0 <= min < max",
            ),
            (
                "image,x_min,y_min,x_max,y_max\ntest/1.abnormal/1.png,9,0,9,9\n",
                ValueError,
                "a box without a pixel.*9",
            ),
        ],
    )
    def test_box_file(self, unannotated: Path, content: str, error: type, message: str) -> None:
        (unannotated / "boxes.csv").write_text(content)
        with pytest.raises(error, match=message):
            Patches(unannotated).setup()

    def test_mask_of_another_size(self, unannotated: Path) -> None:
        masks = unannotated / "ground_truth" / "1.abnormal"
        masks.mkdir(parents=True)
        Image.new("L", (64, 64)).save(masks / "0.png")
        with pytest.raises(ValueError, match=r"0.png' has \(64, 64\) pixels, but its image \(128, 96\)"):
            Patches(unannotated).setup()

    def test_full_images_of_another_datamodule(self) -> None:
        trainer = Trainer(logger=False, enable_checkpointing=False)
        trainer.datamodule = Digits()
        with pytest.raises(TypeError, match="the datamodule is Digits: use Patches"):
            FullImages().on_test_start(trainer, GANomaly(image_size=32, n_features=2, latent_vec_size=2))

# SPDX-License-Identifier: Apache-2.0
"""The reader, on real files of every kind, beside anomalib's own as it comes."""

import importlib.util
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import anomalib.data.utils.image
import numpy as np
import pytest
import tifffile
import torch
from anomalib.data import Folder, PredictDataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from ganomaly_plugin import GANomaly
from ganomaly_plugin.image_file import UnreadableImageError, read_size
from ganomaly_plugin.image_reader import install, read_image, read_mask

ORIENTATION = 0x0112
"""EXIF tag."""


@pytest.fixture(scope="module")
def stock() -> ModuleType:
    """Return anomalib's module as it comes, whatever has been installed in this process."""
    spec = importlib.util.spec_from_file_location("stock_image", anomalib.data.utils.image.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(*shape: int) -> np.ndarray:
    """Return random bytes."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: Image.Image, **kwargs: Any) -> Path:
    """Write an image and return its path."""
    image.save(path, **kwargs)
    return path


def values_of(item: Any) -> list[float]:
    """Return all values of a sample's image."""
    return item.image.flatten().tolist()


def deep_ramp() -> Image.Image:
    """Return a 16-bit grey image of one row."""
    return Image.fromarray(np.array([[0, 1, 257, 32768, 65535]], dtype=np.uint16))


class TestEightBits:
    """Where anomalib is right, the result is its own to the bit."""

    @pytest.mark.parametrize(
        ("mode", "suffix"),
        [(mode, suffix) for mode in ("1", "L", "P", "RGB") for suffix in ("png", "tif", "bmp")]
        + [("L", "jpg"), ("RGB", "jpg"), ("YCbCr", "jpg"), ("CMYK", "jpg"), ("CMYK", "tif"), ("RGB", "webp")],
    )
    def test_equals_anomalib(self, stock: ModuleType, tmp_path: Path, mode: str, suffix: str) -> None:
        path = save(tmp_path / f"image.{suffix}", Image.fromarray(noise(13, 17, 3)).convert(mode))
        array, tensor = read_image(path), read_image(path, as_tensor=True)
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, stock.read_image(path))
        assert isinstance(tensor, tv_tensors.Image)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stock.read_image(path, as_tensor=True))

    def test_shapes_and_values(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.png", Image.fromarray(np.array([[[255, 0, 51], [0, 0, 0]]], dtype=np.uint8)))
        assert read_image(str(path)).tolist() == [[[1.0, 0.0, 0.2], [0.0, 0.0, 0.0]]]
        assert read_image(path, as_tensor=True).shape == (3, 1, 2)

    def test_black_and_white(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.png", Image.fromarray(np.array([[False, True]])))
        assert read_image(path).tolist() == [[[0, 0, 0], [1, 1, 1]]]

    def test_cmyk_ink_is_subtracted(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.tif", Image.new("CMYK", (1, 1), (255, 0, 0, 0)))
        assert read_image(path).tolist() == [[[0, 1, 1]]]

    def test_alpha_is_dropped(self, tmp_path: Path) -> None:
        colour = save(tmp_path / "rgba.png", Image.new("RGBA", (1, 1), (255, 51, 0, 0)))
        grey = save(tmp_path / "la.png", Image.new("LA", (1, 1), (51, 128)))
        assert read_image(colour).tolist() == [[[1, 0.2, 0]]]
        assert read_image(grey).tolist() == [[[0.2, 0.2, 0.2]]]

    @pytest.mark.filterwarnings("error")
    def test_palette_with_transparency(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([255, 51, 0, 0, 51, 255])
        image.putpixel((1, 0), 1)
        path = save(tmp_path / "image.png", image, transparency=bytes([0, 128]))
        assert read_image(path).tolist() == [[[1, 0.2, 0], [0, 0.2, 1]]]

    def test_first_of_several_frames(self, tmp_path: Path) -> None:
        frames = [Image.new("L", (2, 2), level) for level in (51, 255)]
        for suffix in ("tif", "gif", "png"):
            path = save(tmp_path / f"image.{suffix}", frames[0], save_all=True, append_images=frames[1:])
            assert np.all(read_image(path) == 0.2)


class TestDeepGrey:
    """Sixteen bits and floating point."""

    EXPECTED = (0, 1 / 65535, 257 / 65535, 32768 / 65535, 1)

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    def test_sixteen_bits_keep_their_precision(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"image.{suffix}"
        if suffix == "pgm":  # Older releases of Pillow do not write it.
            path.write_bytes(b"P5 5 1 65535\n" + np.asarray(deep_ramp()).astype(">u2").tobytes())
        else:
            save(path, deep_ramp())
        array, tensor = read_image(path), read_image(path, as_tensor=True)
        assert array.shape == (1, 5, 3)
        assert array.dtype == np.float64
        for channel in range(3):
            assert tuple(array[0, :, channel]) == self.EXPECTED
            assert torch.equal(tensor[channel, 0], torch.tensor(self.EXPECTED))
        assert isinstance(tensor, tv_tensors.Image)
        assert tensor.dtype == torch.float32

    @pytest.mark.parametrize("byteorder", ["<", ">"])
    @pytest.mark.parametrize("inverted", [False, True])
    @pytest.mark.parametrize("orientation", [1, 3, 6, 7])
    @pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
    def test_every_tiff(
        self, tmp_path: Path, byteorder: Any, inverted: bool, orientation: int, compression: str | None
    ) -> None:
        """Of one strip, several, or tiles, in either byte order, with black or white at zero, turned or not."""
        levels = np.random.default_rng(0).integers(0, 65536, (37, 23), dtype=np.uint16)
        levels[0, :2] = 0, 65535
        turned = {1: levels, 3: levels[::-1, ::-1], 6: np.rot90(levels, -1), 7: np.rot90(levels, 2).T}[orientation]
        expected = 1 - turned / 65535 if inverted else turned / 65535
        for parts in ({}, {"rowsperstrip": 5}, {"tile": (16, 16)}):
            tifffile.imwrite(
                tmp_path / "image.tif",
                levels,
                byteorder=byteorder,
                compression=compression,
                photometric="miniswhite" if inverted else "minisblack",
                extratags=[(ORIENTATION, 3, 1, orientation, True)],
                **parts,
            )
            np.testing.assert_allclose(read_image(tmp_path / "image.tif")[..., 0], expected, atol=1e-12)
            assert read_size(tmp_path / "image.tif") == expected.shape
            np.testing.assert_array_equal(read_mask(tmp_path / "image.tif") > 0, expected > 1e-12)

    @pytest.mark.parametrize("inverted", [False, True])
    def test_inverted_floats(self, tmp_path: Path, inverted: bool) -> None:
        levels = np.array([[0, 0.25, 1]], dtype=np.float32)
        tifffile.imwrite(tmp_path / "image.tif", levels, photometric="miniswhite" if inverted else "minisblack")
        assert read_image(tmp_path / "image.tif")[0, :, 0].tolist() == ([1, 0.75, 0] if inverted else [0, 0.25, 1])

    def test_twelve_bits(self, tmp_path: Path) -> None:
        """TIFF can say that samples have twelve bits: two pixels in three bytes."""
        tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 130), (277, 1), (278, 1), (279, 3)]
        entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags)
        header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
        (tmp_path / "image.tif").write_bytes(header.ljust(130, b"\0") + bytes([0x80, 0x0F, 0xFF]))
        assert read_image(tmp_path / "image.tif")[0, :, 0].tolist() == [2048 / 4095, 1]

    def test_big_endian(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.tif", Image.fromarray(np.array(deep_ramp()).astype(">u2")))
        with Image.open(path) as image:
            assert image.mode == "I;16B"
        assert tuple(read_image(path)[0, :, 0]) == self.EXPECTED

    def test_anomalib_shows_them_white(self, stock: ModuleType, tmp_path: Path) -> None:
        """One hundredth of the full scale is nearly black, and anomalib makes it white."""
        path = save(tmp_path / "dark.png", Image.fromarray(np.full((2, 2), 655, dtype=np.uint16)))
        assert np.all(stock.read_image(path) == 1)
        assert np.all(read_image(path) == 655 / 65535)

    def test_float_in_range(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.tif", Image.fromarray(np.array([[0, 0.25, 1]], dtype=np.float32)))
        assert read_image(path)[0, :, 1].tolist() == [0, 0.25, 1]

    @pytest.mark.parametrize("values", [[0, 255], [-0.5, 0.5], [0, float("nan")]])
    def test_float_out_of_range_is_refused(self, tmp_path: Path, values: list[float]) -> None:
        path = save(tmp_path / "image.tif", Image.fromarray(np.array([values], dtype=np.float32)))
        with pytest.raises(UnreadableImageError, match=r"image\.tif.* must lie in \[0, 1\]"):
            read_image(path)

    def test_integers_of_32_bits_are_refused(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.tif", Image.fromarray(np.array([[0, 100000]], dtype=np.int32)))
        with pytest.raises(UnreadableImageError, match=r"image\.tif.* 8 or 16 bits"):
            read_image(path)


class TestOrientation:
    """Cameras store the sensor's rows and note in EXIF how to turn them."""

    @pytest.mark.parametrize(
        ("orientation", "expected"),
        [
            (1, [[0, 51, 102], [153, 204, 255]]),
            (2, [[102, 51, 0], [255, 204, 153]]),
            (3, [[255, 204, 153], [102, 51, 0]]),
            (4, [[153, 204, 255], [0, 51, 102]]),
            (5, [[0, 153], [51, 204], [102, 255]]),
            (6, [[153, 0], [204, 51], [255, 102]]),
            (7, [[255, 102], [204, 51], [153, 0]]),
            (8, [[102, 255], [51, 204], [0, 153]]),
        ],
    )
    @pytest.mark.parametrize("depth", [8, 16])
    def test_all_eight(self, tmp_path: Path, orientation: int, expected: list[list[int]], depth: int) -> None:
        grey = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        pixels = grey if depth == 8 else grey.astype(np.uint16) * 257
        path = save(tmp_path / "image.png", Image.fromarray(pixels), exif=exif)
        np.testing.assert_allclose(read_image(path)[..., 0] * 255, expected, atol=1e-12)
        assert read_mask(path).shape == np.shape(expected)

    def test_photograph(self, stock: ModuleType, tmp_path: Path) -> None:
        """A portrait, held upright: wide on the sensor, high to look at."""
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        path = save(tmp_path / "image.jpg", Image.new("RGB", (64, 32)), exif=exif)
        assert read_image(path, as_tensor=True).shape == (3, 64, 32)
        assert stock.read_image(path, as_tensor=True).shape == (3, 32, 64)

    def test_damaged_exif_does_not_matter(self, tmp_path: Path) -> None:
        path = save(tmp_path / "image.jpg", Image.new("RGB", (64, 32)), exif=b"Exif\x00\x00garbage")
        assert read_image(path).shape == (32, 64, 3)


class TestUnreadable:
    """Every error names the file, what is wrong and what to do."""

    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
    def test_truncated(self, tmp_path: Path, suffix: str) -> None:
        whole = save(tmp_path / f"whole.{suffix}", Image.fromarray(noise(64, 64, 3))).read_bytes()
        path = tmp_path / f"part.{suffix}"
        for length in (0, 10, len(whole) // 2):
            path.write_bytes(whole[:length])
            for reader in (read_image, read_mask):
                with pytest.raises(UnreadableImageError, match=rf"part\.{suffix}.*Replace the file, or take it out"):
                    reader(path)

    def test_anomalib_does_not_name_it(self, stock: ModuleType, tmp_path: Path) -> None:
        path = save(tmp_path / "image.png", Image.fromarray(noise(64, 64, 3)))
        path.write_bytes(path.read_bytes()[:6000])
        with pytest.raises(OSError, match="truncated") as error:
            stock.read_image(path)
        assert "image.png" not in str(error.value)

    def test_not_an_image(self, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_text("no image")
        with pytest.raises(UnreadableImageError, match=r"image\.png.*cannot identify"):
            read_image(path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        for path in (tmp_path / "pipe.png", tmp_path, Path(os.devnull)):
            with pytest.raises(UnreadableImageError, match="it is a folder, a pipe or a device"):
                read_image(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no image file at '.*gone\.png'"):
            read_image(tmp_path / "gone.png")

    def test_error_survives_the_way_out_of_a_worker(self, tmp_path: Path) -> None:
        (tmp_path / "image.png").touch()
        with pytest.raises(UnreadableImageError) as error:
            read_image(tmp_path / "image.png")
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


class TestMask:
    """Ground truth."""

    def test_equals_anomalib(self, stock: ModuleType, tmp_path: Path) -> None:
        path = save(tmp_path / "mask.png", Image.fromarray(noise(13, 17) // 100 * 100))
        mask = read_mask(path, as_tensor=True)
        assert isinstance(mask, tv_tensors.Mask)
        assert mask.dtype == torch.uint8
        assert torch.equal(mask, stock.read_mask(path, as_tensor=True))
        np.testing.assert_array_equal(read_mask(path), stock.read_mask(path))

    def test_faint_values_count(self, tmp_path: Path) -> None:
        path = save(tmp_path / "mask.png", deep_ramp())
        assert torch.as_tensor(read_mask(path, as_tensor=True)).tolist() == [[0, 1, 1, 1, 1]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_is_turned_with_its_image(self, tmp_path: Path, orientation: int) -> None:
        """A mask of the stored pixels, which has no EXIF; one of the turned pixels; and one with EXIF of its own."""
        install()
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        defect = np.zeros((20, 30), dtype=np.uint8)
        defect[2:5, 7:16] = 255
        (tmp_path / "good").mkdir()
        save(tmp_path / "good" / "0.png", Image.new("L", (30, 20)))
        for kind in ("bad", "mask"):
            (tmp_path / kind).mkdir()
        for index, own in enumerate((None, exif)):
            save(tmp_path / "bad" / f"{index}.png", Image.fromarray(defect), exif=exif)
            save(tmp_path / "mask" / f"{index}.png", Image.fromarray(defect), exif=own)
        save(tmp_path / "bad" / "2.png", Image.fromarray(defect), exif=exif)
        upright = Image.fromarray((read_image(tmp_path / "bad" / "2.png")[..., 0] * 255).astype(np.uint8))
        if upright.size != (30, 20):  # Otherwise nothing tells it from a mask of the stored pixels.
            save(tmp_path / "mask" / "2.png", upright)
        else:
            (tmp_path / "bad" / "2.png").unlink()
        datamodule = Folder(
            "parts", normal_dir="good", abnormal_dir="bad", mask_dir="mask", root=tmp_path, test_split_mode="none",
            val_split_mode="none", normal_test_dir="good", num_workers=0,
        )  # fmt: skip
        datamodule.setup()
        items = [item for item in datamodule.test_data if item.gt_label]
        assert len(items) == len(list((tmp_path / "mask").iterdir()))
        for item in items:
            assert torch.equal(item.image[0] > 0.5, torch.as_tensor(item.gt_mask) > 0)


class TestInstall:
    """anomalib with the reader in place."""

    def test_replaces_every_copy_of_the_name(self, stock: ModuleType) -> None:
        holders = {
            name: module
            for name, module in sys.modules.items()
            if name.startswith("anomalib.") and "read_image" in vars(module)
        }
        for name in ("utils.image", "utils", "utils.synthetic", "predict", "datasets.base.image"):
            assert f"anomalib.data.{name}" in holders
        for module in holders.values():  # As they are before any installation.
            module.read_image = stock.read_image  # type: ignore[attr-defined]
        for _ in range(2):
            install()
            assert all(module.read_image is read_image for module in holders.values())

    def test_modules_imported_later_get_it(self) -> None:
        install()
        from anomalib.data.utils import read_image as image_reader
        from anomalib.data.utils import read_mask as mask_reader

        assert image_reader is read_image
        assert mask_reader is read_mask

    def test_folder_and_prediction(self, tmp_path: Path) -> None:
        """Dark 16-bit images, which anomalib without the reader makes white."""
        install()
        for name, level in (("good", 655), ("bad", 13107)):
            (tmp_path / name).mkdir()
            for index in range(4):
                save(tmp_path / name / f"{index}.png", Image.fromarray(np.full((8, 8), level, dtype=np.uint16)))
        datamodule = Folder("parts", normal_dir="good", abnormal_dir="bad", root=tmp_path, num_workers=0, seed=0)
        datamodule.setup()
        assert set(values_of(datamodule.train_data[0])) == {np.float32(655 / 65535)}
        assert set(values_of(PredictDataset(tmp_path / "bad")[0])) == {np.float32(0.2)}

    def test_folder_names_the_broken_file(self, tmp_path: Path) -> None:
        install()
        (tmp_path / "good").mkdir()
        save(tmp_path / "good" / "broken.png", Image.fromarray(noise(64, 64)))
        (tmp_path / "good" / "broken.png").write_bytes((tmp_path / "good" / "broken.png").read_bytes()[:2000])
        with pytest.raises(UnreadableImageError, match=r"good/broken\.png"):
            PredictDataset(tmp_path / "good")[0]

    @pytest.mark.slow
    def test_workers_that_are_not_forked_read_alike(self, tmp_path: Path) -> None:
        """As all are on macOS and Windows: a worker is a fresh process, and gets the data set pickled."""
        install()
        save(tmp_path / "dark.png", Image.fromarray(np.full((8, 8), 655, dtype=np.uint16)))
        dataset = PredictDataset(tmp_path)
        loader = DataLoader(dataset, num_workers=1, multiprocessing_context="spawn", collate_fn=dataset.collate_fn)
        (batch,) = loader
        assert set(values_of(batch)) == {np.float32(655 / 65535)}


PROGRAM = """
import hashlib, pickle, sys
import anomalib.data, anomalib.models, anomalib.engine, anomalib.cli
from anomalib.data import Folder, PredictDataset
from anomalib.data.utils import read_image, read_mask
from anomalib.visualization import ImageVisualizer

def digest():
    folders = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "mask"}
    datamodule = Folder("parts", root=".", num_workers=0, seed=0, **folders)
    datamodule.setup()
    pixels = hashlib.sha256()
    for data in (datamodule.train_data, pickle.loads(pickle.dumps(datamodule.test_data)), PredictDataset("bad")):
        for item in data:
            for field in (item.image, item.gt_mask):
                pixels.update(b"" if field is None else field.numpy().tobytes())
            item.pred_mask = item.image[0] > 0.5
            pixels.update(ImageVisualizer().visualize(item).tobytes())
    return pixels.hexdigest()

before = digest()
exec(sys.argv[1])
print(before, digest())
"""


@pytest.mark.slow
class TestOnlyWithOurs:
    """Images are read otherwise where something of this package takes part, and only there."""

    @pytest.fixture(scope="class")
    @classmethod
    def parts(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Dark 16-bit images, a photograph that is to be turned, and their masks."""
        root = tmp_path_factory.mktemp("parts")
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        for kind in ("good", "bad", "mask"):
            (root / kind).mkdir()
            for index in range(3):
                deep = Image.fromarray(np.full((8, 12), 300 * index, dtype=np.uint16))
                save(root / kind / f"{index}.png", Image.new("L", (12, 8), 255) if kind == "mask" else deep)
            save(root / kind / "photograph.png", Image.fromarray(noise(8, 12)), exif=exif if kind != "mask" else None)
        return root

    def run(self, folder: Path, code: str = "", **environment: str) -> list[str]:
        """Return digests of all pixels before and after some code."""
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, code],
            cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.split()

    @pytest.fixture(scope="class")
    @classmethod
    def without_us(cls, parts: Path) -> str:
        """Digest where nothing of this package is imported."""
        code = "assert 'ganomaly_plugin' not in sys.modules"
        before, after = cls().run(parts, code, GANOMALY_PLUGIN_DISABLE="1")
        assert before == after
        return before

    def test_other_programs_get_the_same_bits(self, parts: Path, without_us: str) -> None:
        code = "assert anomalib.models.GANomaly and anomalib.data.Digits"
        assert self.run(parts, code) == [without_us, without_us]

    @pytest.mark.parametrize(
        "code",
        [
            "from ganomaly_plugin import GANomaly; GANomaly(n_features=2, latent_vec_size=2)",
            "from ganomaly_plugin import Digits; Digits()",
            "from ganomaly_plugin.compare.grid import Run; from ganomaly_plugin.compare.run import build_datamodule;"
            "folder = {'class_path': 'anomalib.data.Folder', 'init_args': {'name': 'parts', 'normal_dir': 'good'}};"
            "build_datamodule(Run('Padim', 'parts', 'all', 0, {}, folder, {}))",
        ],
        ids=["model", "datamodule", "comparison"],
    )
    def test_models_datamodules_and_comparisons_read_better(self, parts: Path, without_us: str, code: str) -> None:
        before, after = self.run(parts, code)
        assert before == without_us != after

    def test_unpickled_models_do(self, parts: Path, without_us: str, tmp_path: Path) -> None:
        """Such as PyTorch exports, which anomalib's inferencer loads."""
        model = GANomaly(n_features=2, latent_vec_size=2).to_torch(tmp_path)
        before, after = self.run(parts, f"import torch; torch.load({str(model)!r}, weights_only=False)")
        assert before == without_us != after

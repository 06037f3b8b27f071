# SPDX-License-Identifier: Apache-2.0
"""What the detector takes as an image: objects of others stay as they are, and mean what their files do."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganomaly_plugin.edge.image_input import ImageTooLargeError, is_one, to_input
from ganomaly_plugin.image_file import UnreadableImageError


def save_turned(path: Path, image: Image.Image) -> None:
    """Save an image that is to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("stripes", [False, True])
def test_opened_photograph_is_turned_like_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, depth: int, stripes: bool
) -> None:
    """Also with 16 bits, and in stripes; the image of the caller stays as it is."""
    if suffix == ".jpg" and depth == 16:
        pytest.skip("JPEG has 8 bits")
    if stripes:
        monkeypatch.setattr("ganomaly_plugin.edge.image_input._STRIPE", 64)
    values = np.random.default_rng(0).integers(0, 1 << depth, (20, 30))
    path = tmp_path / f"a{suffix}"
    save_turned(path, Image.fromarray(values.astype(np.uint8 if depth == 8 else np.uint16)))
    expected = to_input(path)
    assert expected.shape == (1, 3, 30, 20)
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_input(image), expected)
        np.testing.assert_array_equal(to_input(image), expected)


def test_image_of_the_caller_keeps_its_transparency() -> None:
    """A palette with one."""
    image = Image.new("P", (8, 8))
    image.info["transparency"] = 3
    to_input(image)
    assert image.info["transparency"] == 3


def test_masked_arrays_are_refused() -> None:
    """Their mask would be lost."""
    with pytest.raises(ValueError, match="masked array"):
        to_input(np.ma.masked_array(np.zeros((8, 8), np.uint8), mask=np.eye(8, dtype=bool)))


def test_paths_of_all_kinds(tmp_path: Path) -> None:
    """What a listing of a folder gives, and any other object that stands for a path."""
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    (entry,) = os.scandir(tmp_path)
    assert is_one(entry)
    assert to_input(entry).min() == 1


def test_errors_of_bytes_name_no_object() -> None:
    """They have no name that says anything."""
    for source in (b"no image", io.BytesIO(b"no image")):
        with pytest.raises(UnreadableImageError, match="^Cannot read an image from its bytes") as caught:
            to_input(source)
        assert "<_io" not in str(caught.value)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_millions_of_pixels_are_refused(tmp_path: Path, turned: bool) -> None:
    """Rows are read whole, so that memory would follow from their length; columns may have any."""
    long, path = (1 << 20) + 1, tmp_path / "a.png"
    if turned:
        save_turned(path, Image.new("L", (2, long)))
    else:
        Image.new("L", (long, 2)).save(path)
    with pytest.raises(ImageTooLargeError, match="is 1048577 pixels wide"):
        to_input(path)
    Image.new("L", (2, long)).save(path)
    assert to_input(path).shape == (1, 3, long, 2)


def test_limit_is_that_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own holds again afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (50, 50), 255).save(tmp_path / "a.png")
    assert to_input(tmp_path / "a.png", max_pixels=2500).min() == 1
    with pytest.raises(UnreadableImageError, match="more than the 2499 that are allowed"):
        to_input(tmp_path / "a.png", max_pixels=2499)
    assert Image.MAX_IMAGE_PIXELS == 100

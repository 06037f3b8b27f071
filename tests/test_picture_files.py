# SPDX-License-Identifier: Apache-2.0
"""Pictures of images with the same name."""

import random
from pathlib import Path

from ganomaly_plugin.picture_files import PictureFiles


def test_each_image_has_a_file(tmp_path: Path) -> None:
    """Whatever the folders and the order; where nothing is to be told apart, it is anomalib's."""
    names = ["good/0.png", "a/good/0.png", "b/good/0.png", "x/b/good/0.png", "good/0.jpg", "0.png", "b/good/1.png"]
    images = [Path("/data", name) for name in names] + [Path(name) for name in names]
    for seed in range(20):
        random.Random(seed).shuffle(images)
        files = PictureFiles()
        found = {image: files.find(image, tmp_path) for image in images}
        assert len(set(found.values())) == len(images)
        assert all(file.parent.is_dir() and file.is_relative_to(tmp_path) for file in found.values())
        assert {image: files.find(image, tmp_path) for image in images} == found
        assert found[Path("/data/good/0.jpg")].suffix == ".jpg"
        assert len({files.find(image, tmp_path / "all", suffix=".png") for image in images}) == len(images)
    assert PictureFiles().find("/data/b/good/1.png", tmp_path) == tmp_path / "good" / "1.png"

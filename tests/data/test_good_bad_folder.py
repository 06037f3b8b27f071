# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganomaly_plugin import GoodBadFolder


def draw(folder: Path, number: int, size: tuple[int, int] = (8, 6)) -> None:
    """Write pictures of noise, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


def set_up(root: Path, **kwargs: Any) -> Any:
    """Return a datamodule ready for use, untyped because anomalib declares each field as optional."""
    datamodule = GoodBadFolder(root, **kwargs)
    datamodule.setup()
    return datamodule


def names(datamodule: Any) -> list[set[str]]:
    """Return the files for training, validation and test."""
    return [set(getattr(datamodule, f"{part}_data").samples.image_path) for part in ("train", "val", "test")]


@pytest.mark.parametrize("size", [(8, 6), (100, 80)], ids=["in memory", "in files"])
def test_split(tmp_path: Path, size: tuple[int, int]) -> None:
    """A tenth of the good parts is for the test, as all bad ones are; nothing is lost or shared."""
    draw(tmp_path / "good", 50, size)
    draw(tmp_path / "bad", 7, size)
    datamodule = set_up(tmp_path)
    train, val, test = names(datamodule)
    assert (len(train), len(val), len(test)) == (35, 10, 12)
    assert train | val | test == {str(path) for path in tmp_path.rglob("*.png")}
    assert datamodule.test_data.samples.label_index.sum() == 7
    assert not datamodule.train_data.has_anomalous and not datamodule.val_data.has_anomalous
    assert all(("/bad/" in sample.image_path) == bool(sample.gt_label) for sample in datamodule.test_data)
    assert datamodule.name == tmp_path.name


def test_without_bad_parts(tmp_path: Path) -> None:
    """The good parts are split alike, whatever the bad ones are."""
    draw(tmp_path / "good", 20)
    alone = names(set_up(tmp_path))
    draw(tmp_path / "bad", 3)
    train, val, test = names(set_up(tmp_path))
    assert alone == [train, val, {name for name in test if "/bad/" not in name}]
    assert len(alone[2]) == 2


def test_the_seed_draws_the_parts(tmp_path: Path) -> None:
    """The same seed gives the same split, another one another test set."""
    draw(tmp_path / "good", 40)
    assert names(set_up(tmp_path)) == names(set_up(tmp_path, seed=0))
    assert names(set_up(tmp_path))[2] != names(set_up(tmp_path, seed=1))[2]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(5, [3, 1, 1]), (19, [14, 3, 2]), (60, [42, 12, 6]), (100, [70, 20, 10]), (200, [160, 20, 20])],
)
def test_sizes_of_the_parts(tmp_path: Path, count: int, expected: list[int]) -> None:
    """Each set has at least one; 20 are for the threshold where that is at most a fifth, and a tenth of many."""
    draw(tmp_path / "good", count)
    assert [len(part) for part in names(set_up(tmp_path))] == expected


def test_fraction_for_the_threshold(tmp_path: Path) -> None:
    """Of the good parts outside of the test."""
    draw(tmp_path / "good", 40)
    assert [len(part) for part in names(set_up(tmp_path, val_split_ratio=0.5))] == [18, 18, 4]


def test_subfolders_and_links_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    """Defects may be sorted by their kind, also by links; what programs hide is no part."""
    draw(tmp_path / "good", 5)
    draw(tmp_path / "bad" / "scratch", 2)
    draw(tmp_path / "elsewhere", 3)
    (tmp_path / "bad" / "dent").symlink_to(tmp_path / "elsewhere")
    draw(tmp_path / "bad" / ".thumbnails", 4)
    (tmp_path / "bad" / "scratch" / "notes.txt").write_text("no picture")
    (tmp_path / "bad" / "scratch" / "000.png").rename(tmp_path / "bad" / "scratch" / "UPPER.PNG")
    assert set_up(tmp_path).test_data.samples.label_index.sum() == 5


@pytest.mark.parametrize(
    ("good", "bad", "error", "message"),
    [
        (None, None, FileNotFoundError, "good' holds no image .* put pictures of good parts there"),
        (0, 3, FileNotFoundError, "good' holds no image"),
        (4, None, ValueError, "good' holds 4 images, but 5 are needed at least"),
        (5, 0, FileNotFoundError, "bad' holds no image: add pictures of bad parts, or remove it"),
    ],
)
def test_wrong_folders(tmp_path: Path, good: int | None, bad: int | None, error: type[Exception], message: str) -> None:
    """The message says what lies where, before anything is trained."""
    for name, number in (("good", good), ("bad", bad)):
        if number is not None:
            draw(tmp_path / name, number)
    with pytest.raises(error, match=message):
        GoodBadFolder(tmp_path)


def test_the_protocol_is_no_choice(tmp_path: Path) -> None:
    """Good is normal."""
    draw(tmp_path / "good", 5)
    with pytest.raises(TypeError, match="one_vs_rest"):
        GoodBadFolder(tmp_path, one_vs_rest="abnormal")

# SPDX-License-Identifier: Apache-2.0
"""Find the images that a user means: files, folders, globs, lists, and the frames of videos."""

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from ganomaly_plugin.edge.image_input import Source
from ganomaly_plugin.image_file import is_hidden

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


class Frame(NamedTuple):
    """One image to score, under the name that the results give it."""

    name: str
    source: Source | Exception
    """The image, or why a video has none."""


def find_images(paths: Iterable[str]) -> Iterator[Path]:
    """Return the files that folders, globs and lists stand for, each folder's in alphabetical order.

    ``-`` is a list on standard input, whose files are given as its lines come. What is wrong with the other paths is
    found at once.

    Raises:
        FileNotFoundError: If a folder holds no image, or a glob matches nothing.
        ValueError: If a path or the list is empty, or the list is asked for twice.
    """
    paths = list(paths)
    if paths.count("-") > 1:
        msg = "The list on standard input (-) can be read once: name it once."
        raise ValueError(msg)
    return chain.from_iterable([_read_list() if path == "-" else _expand(path) for path in paths])


def _read_list() -> Iterator[Path]:
    if sys.stdin is None or sys.stdin.closed:
        msg = "There is no standard input to read the list from (-)."
        raise ValueError(msg)
    count = 0
    for line in _decode_list(sys.stdin):
        name = line.removesuffix("\n").removesuffix("\r")
        if name.strip():
            count += 1
            try:
                yield from _expand(name)
            except FileNotFoundError:
                yield Path(name)  # Reported when it is read, and the others are scored.
    if not count:
        msg = "The list on standard input is empty."
        raise ValueError(msg)


def _decode_list(stdin: TextIO) -> TextIO:
    """Return standard input as text in UTF-8, or in UTF-16 where its first bytes show that."""
    if not isinstance(stdin, io.TextIOWrapper):
        return stdin
    buffer = stdin.detach()
    start = buffer.peek(2)[:2] if isinstance(buffer, io.BufferedReader) else b""
    encoding = "utf-16" if start in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    if len(start) == 2 and 0 in start:  # No name holds a zero, but half of a letter in UTF-16 may be one.
        encoding = "utf-16-be" if start[0] == 0 else "utf-16-le"
    errors = "strict" if encoding.startswith("utf-16") else "surrogateescape"
    return io.TextIOWrapper(buffer, encoding, errors, newline="\n")


def _expand(path: str) -> Iterable[Path]:
    if not path:
        msg = "One of the paths is empty ('')."
        raise ValueError(msg)
    if os.path.isdir(path):  # noqa: PTH112  (unlike pathlib, it takes a name that is too long)
        found = _list(Path(path))
        if not found:
            msg = f"The folder '{path}' holds no images ({', '.join(sorted(SUFFIXES))})."
            raise FileNotFoundError(msg)
        return found
    if glob.has_magic(path) and not os.path.exists(path):  # noqa: PTH110
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            msg = f"No file matches '{path}'."
            raise FileNotFoundError(msg)
        files = {
            file: None for match in matches for file in (_list(Path(match)) if Path(match).is_dir() else [Path(match)])
        }
        return list(files)
    return [Path(path)]


def _list(folder: Path) -> list[Path]:
    """Return the images below a folder, those in linked folders too, each folder's once, without hidden ones."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:  # A link that leads back.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = (inner for inner in folders if not is_hidden(inner))
        found += (Path(root, file) for file in files if Path(file).suffix.lower() in SUFFIXES and not is_hidden(file))
    return sorted(found)


def read_frames(paths: Iterable[Path]) -> Iterator[Frame]:
    """Yield images, and the frames of videos as ``<path>#<number>``."""
    for path in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            yield Frame(str(path), path)
            continue
        try:
            yield from (Frame(f"{path}#{number}", pixels) for number, pixels in enumerate(read_video(path)))
        except (OSError, ImportError) as error:
            yield Frame(str(path), error)


def read_video(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames of a video ``(H, W, 3)``.

    Raises:
        ImportError: If OpenCV is not installed.
        OSError: If the file is no video.
    """
    try:
        import cv2
    except ImportError as error:
        msg = f"'{path}' is a video, which takes OpenCV to read: pip install opencv-python-headless."
        raise ImportError(msg) from error
    video = cv2.VideoCapture(str(path))
    read, frame = video.read()
    if not read:
        msg = f"'{path}' is no video that OpenCV can read."
        raise OSError(msg)
    while read:
        yield frame[..., ::-1].astype(np.uint8)  # OpenCV's order is BGR.
        read, frame = video.read()

# SPDX-License-Identifier: Apache-2.0
"""The command ``ganomaly-edge``."""

import argparse
import csv
import glob
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ganomaly_plugin.edge.detector import Detector, Prediction
from ganomaly_plugin.edge.image_input import Source, to_input

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
COLUMNS = ("path", "score", "label")
NORMAL, ANOMALOUS = "normal", "anomalous"
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
"""How results are written: names of files may hold any bytes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Returns:
        0 if all images are normal, 1 if some are anomalous, 2 after an error.
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=TEXT["errors"])
    try:
        status: int = options.run(options)
    except (OSError, ValueError, RuntimeError) as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        print("ganomaly-edge: interrupted; --resume continues from here.", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ganomaly-edge", description="Find anomalous images with an exported model.")
    commands = parser.add_subparsers(required=True)

    predict = commands.add_parser(
        "predict",
        help="score images",
        description="Score images. Exit status: 0 all normal, 1 anomalies found, 2 errors.",
    )
    predict.set_defaults(run=run_predict)
    predict.add_argument("model", type=Path, help="exported model (.xml or .onnx)")
    predict.add_argument("paths", nargs="+", help="images, folders, globs, videos, or - for a list on standard input")
    predict.add_argument("--output", type=Path, help="results as .csv or .jsonl; standard output by default")
    predict.add_argument("--save-maps", type=Path, metavar="DIR", help="folder for heat maps over the images")
    predict.add_argument("--threshold", type=float, help="score above which an image is anomalous")
    predict.add_argument("--device", default="CPU", help="OpenVINO's device")
    predict.add_argument("--resume", action="store_true", help="keep the results in --output and score the rest")

    bench = commands.add_parser("bench", help="measure latency and throughput")
    bench.set_defaults(run=run_bench)
    bench.add_argument("model", type=Path, help="exported model (.xml or .onnx)")
    pair = ("HEIGHT", "WIDTH")
    bench.add_argument("--size", type=int, nargs=2, metavar=pair, default=(256, 256), help="size of images in pixels")
    bench.add_argument("--seconds", type=float, default=5, help="duration of each measurement")
    bench.add_argument("--device", default="CPU", help="OpenVINO's device")
    return parser


def run_predict(options: argparse.Namespace) -> int:
    """Score the images of the command line."""
    # All that may be wrong is found before the file of earlier results is touched.
    detector = Detector(options.model, options.device, "throughput", options.threshold)
    frames = read_frames(find_images(options.paths), report := ErrorReport())
    with closing(Results(options.output, options.resume)) as results:
        for frame, prediction in _stream(detector, _unseen(frames, results.names), report):
            if options.save_maps is not None:
                save_map(prediction, frame, options.save_maps)
            results.write(frame.name, prediction.score, ANOMALOUS if prediction.is_anomalous else NORMAL)
            _progress(f"{results.count} images, {results.anomalous} anomalous, {report.count} not readable")
    _progress("")
    summary = f"{results.count} images: {results.anomalous} anomalous, {report.count} not readable"
    print(summary, file=sys.stderr)
    return 2 if report.count else int(results.anomalous > 0)


class ErrorReport:
    """Says in one line which image cannot be read, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: Exception) -> None:
        """Report one error."""
        self.count += 1
        _progress("")
        _complain(error)


def _complain(error: Exception) -> None:
    print(f"ganomaly-edge: {' '.join(str(error).split())}", file=sys.stderr)


def run_bench(options: argparse.Namespace) -> int:
    """Measure the model on noise, one image at a time and many."""
    image = np.random.default_rng(0).integers(0, 256, (*options.size, 3), dtype=np.uint8)
    latency = Detector(options.model, options.device, "latency")
    latency.predict(image)
    milliseconds = []
    start = time.perf_counter()
    while (before := time.perf_counter()) - start < options.seconds:
        latency.predict(image)
        milliseconds.append((time.perf_counter() - before) * 1e3)
    print(f"one at a time: {len(milliseconds) / (time.perf_counter() - start):.1f} images/s")
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
    print(f"latency: p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms")

    throughput = Detector(options.model, options.device, "throughput")
    start = time.perf_counter()

    def endless() -> Iterator[npt.NDArray[np.uint8]]:
        while time.perf_counter() - start < options.seconds:
            yield image

    count = sum(1 for _ in throughput.stream(endless()))
    print(f"stream: {count / (time.perf_counter() - start):.1f} images/s")
    return 0


class Frame(NamedTuple):
    """One image to score, under the name that the results give it."""

    name: str
    source: Source


def _unseen(frames: Iterable[Frame], seen: set[str]) -> Iterator[Frame]:
    """Yield each frame once, and add its name to those seen."""
    for frame in frames:
        if frame.name not in seen:
            seen.add(frame.name)
            yield frame


def _stream(
    detector: Detector, frames: Iterable[Frame], report: Callable[[Exception], None]
) -> Iterator[tuple[Frame, Prediction]]:
    waiting: list[Frame] = []

    def sources() -> Iterator[Source]:
        for frame in frames:
            waiting.append(frame)
            yield frame.source

    def skip(_: Source, error: Exception) -> None:
        waiting.pop()  # The last one that was handed out.
        report(error)

    for prediction in detector.stream(sources(), skip):
        yield waiting.pop(0), prediction


def find_images(paths: Iterable[str]) -> Iterator[Path]:
    """Return the files that folders, globs and lists stand for, each folder's in alphabetical order.

    Raises:
        FileNotFoundError: If a folder holds no image, or a glob matches nothing.
    """
    return chain.from_iterable([_expand(path) for path in paths])


def _expand(path: str) -> Iterable[Path]:
    if path == "-":
        return (Path(line.strip()) for line in sys.stdin if line.strip())
    if Path(path).is_dir():
        suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        found = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in suffixes)
        if not found:
            msg = f"The folder '{path}' holds no images ({', '.join(sorted(suffixes))})."
            raise FileNotFoundError(msg)
        return found
    if glob.has_magic(path) and not Path(path).exists():
        found = sorted(map(Path, glob.glob(path, recursive=True)))
        if not found:
            msg = f"No file matches '{path}'."
            raise FileNotFoundError(msg)
        return found
    return [Path(path)]


def read_frames(paths: Iterable[Path], report: Callable[[Exception], None]) -> Iterator[Frame]:
    """Yield images, and the frames of videos as ``<path>#<number>``."""
    for path in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            yield Frame(str(path), path)
            continue
        try:
            yield from (Frame(f"{path}#{number}", pixels) for number, pixels in enumerate(read_video(path)))
        except (OSError, ImportError) as error:
            report(error)


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


class Results:
    """The results, written one line at a time and at once, so that a killed run loses nothing.

    Args:
        path: A ``.csv`` or ``.jsonl`` file; ``None`` is CSV on standard output.
        resume: Whether to keep what the file holds and go on behind it.

    Raises:
        ValueError: If the file's name has another ending, or there are no results to resume.
    """

    def __init__(self, path: Path | None, resume: bool) -> None:
        if path is not None and path.suffix not in {".csv", ".jsonl"}:
            msg = f"--output is '{path}', but must end in .csv or .jsonl."
            raise ValueError(msg)
        if resume and path is None:
            msg = "--resume needs the file of the earlier results: give --output."
            raise ValueError(msg)
        self.names: set[str] = set()
        """Paths of the images that have a result, or are on their way to one."""
        self.count = 0
        """Number of results, those of earlier runs among them."""
        self.anomalous = 0
        """How many of them are anomalous."""
        if path is not None and resume and path.exists():
            with path.open(**TEXT) as file:
                text = file.read()
            complete = text[: text.rfind("\n") + 1]  # A killed run may have left half a line.
            lines = io.StringIO(complete, newline="")
            try:
                for row in csv.DictReader(lines) if path.suffix == ".csv" else map(json.loads, lines):
                    self.names.add(row["path"])
                    self._add(row["label"])
            except (KeyError, TypeError, ValueError) as error:
                msg = f"'{path}' holds no results that could be resumed: name another file with --output."
                raise ValueError(msg) from error
            os.truncate(path, len(complete.encode(TEXT["encoding"], TEXT["errors"])))
        elif path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        self._file: TextIO = sys.stdout if path is None else path.open("a", **TEXT)
        self._csv = None
        if path is None or path.suffix == ".csv":
            self._csv = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
            if path is None or not path.stat().st_size:
                self._csv.writeheader()

    def write(self, path: str, score: float, label: str) -> None:
        """Add one result."""
        row = dict(zip(COLUMNS, (path, score, label), strict=True))
        if self._csv is not None:
            self._csv.writerow(row)
        else:
            self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._add(label)

    def _add(self, label: str) -> None:
        self.count += 1
        self.anomalous += label == ANOMALOUS

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._file is not sys.stdout:
            self._file.close()


def save_map(prediction: Prediction, frame: Frame, folder: Path) -> None:
    """Save the map over its image, red where anomalous, under the image's name.

    Raises:
        ValueError: If the model gives no map.
    """
    if prediction.anomaly_map is None:
        msg = "The model gives no anomaly map: leave --save-maps out."
        raise ValueError(msg)
    pixels = to_input(frame.source)[0].transpose(1, 2, 0)
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    heat = np.clip(prediction.anomaly_map, 0, 1)
    colours = np.stack([heat, np.minimum(heat, 1 - heat), 1 - heat], axis=-1)
    overlay = Image.fromarray((colours * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    relative = Path(frame.name.replace("#", "-"))
    target = folder / relative.relative_to(relative.anchor).with_suffix(f"{relative.suffix}.png")
    if ".." in target.parts:
        target = folder / f"{relative.name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.blend(image, overlay, 0.5).save(target)


def _progress(text: str) -> None:
    """Show the state on a terminal, in one line that the next call overwrites."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

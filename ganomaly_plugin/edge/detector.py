# SPDX-License-Identifier: Apache-2.0
"""Run an exported anomaly detector."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino

from ganomaly_plugin.edge.calibration import Calibration, PixelQuantile, check_pictures, choose_threshold
from ganomaly_plugin.edge.exported_model import (
    CALIBRATION_SCORES,
    hash_model,
    read_metadata,
    read_model,
    read_threshold,
    shared_core,
    write_calibrated,
)
from ganomaly_plugin.edge.image_input import MAX_PIXELS, Size, Source, is_one, limit_sides, to_input
from ganomaly_plugin.edge.pipeline import Budget, start_ahead

UNLABELLED_THRESHOLD = 0.5
"""Threshold for models that give no labels: where anomalib's normalisation puts it."""
_IN_FLIGHT = 1 << 24
"""Pixels of the images of one stream that wait for the model or are in it; an image with more is alone."""
_KEPT = 1 << 20
"""Pixels of an image above which the memory that held it is freed and not used again."""
_KEPT_SCORES = 2000
"""Scores of good parts that a calibrated model holds."""
_SMALLEST_SIDE, _REDUCTION = 2048, 8
"""Where the model shrinks images itself, they come with sides up to the first, or the second times its own sides:
shrinking in two steps then changes scores by less than 1e-3."""


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one image."""

    score: float
    """User-facing anomaly score; anomalib's exports give [0, 1]."""
    is_anomalous: bool
    """Whether the score exceeds the threshold."""
    anomaly_map: npt.NDArray[np.float32] | None
    """Score of each pixel ``(H, W)`` in the model's size, if the model gives one."""
    mask: npt.NDArray[np.bool_] | None
    """Anomalous pixels ``(H, W)``, if the model gives them."""
    source: Source
    """The image as it was given."""


class _Job(NamedTuple):
    """An image in the model. Its pixels lie in memory of the request, so that they live as long as it."""

    request: openvino.InferRequest
    pixels: int


class Detector:
    """An anomaly detector exported to OpenVINO by anomalib, this package's models or any other.

    It can be used from several threads at once.

    Args:
        model: The ``.xml`` file, with its ``.bin`` beside it, or an ``.onnx`` file.
        device: OpenVINO's name of the device, such as ``CPU``, ``GPU`` or ``AUTO``.
        hint: ``latency`` for one image at a time, ``throughput`` for streams.
        threshold: User-facing score above which an image is anomalous; ``None`` leaves the decision to the model.
        cache_dir: Folder for compiled models, which shortens later starts on GPUs and NPUs.
        max_pixels: Pixels of an image file above which it is refused; Pillow's own limit does not count.

    Raises:
        FileNotFoundError: If a file of the model is missing.
        NotADetectorError: If it is no anomaly detector.
        ValueError: If the device does not exist, or the threshold is not finite.

    Example:
        >>> detector = Detector("model.xml")  # doctest: +SKIP
        >>> detector.predict("part.png").is_anomalous  # doctest: +SKIP
        False
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "CPU",
        hint: Literal["latency", "throughput"] = "latency",
        threshold: float | None = None,
        cache_dir: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if threshold is not None and not np.isfinite(threshold):
            msg = f"The threshold is {threshold}, but must be a finite score."
            raise ValueError(msg)
        self.threshold = threshold
        self.model = Path(model)
        """The model's file."""
        self._max_pixels = max_pixels
        core = shared_core()
        network = read_model(self.model)
        known = core.available_devices
        if device.split(".")[0].split(":")[0] not in {*(name.split(".")[0] for name in known), "AUTO", "HETERO"}:
            msg = f"There is no device '{device}' here: choose one of {', '.join([*known, 'AUTO'])}."
            raise ValueError(msg)
        config: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper()}
        if cache_dir is not None:
            config["CACHE_DIR"] = str(cache_dir)
        self._compiled = core.compile_model(network, device, config)
        self._jobs = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: deque[openvino.InferRequest] = deque()
        self._outputs = {name: index for index, port in enumerate(self._compiled.outputs) for name in port.names}
        self.model_threshold = read_threshold(network)
        """Score above which the model itself calls an image anomalous; ``None`` if it does not say."""
        shape = network.input(0).partial_shape
        self.input_size: Size | None = None
        """Height and width that the model takes; ``None`` if it takes any."""
        if shape[2].is_static and shape[3].is_static:
            self.input_size = (shape[2].get_length(), shape[3].get_length())
        self.metadata = read_metadata(network)
        if self.metadata.get("trained") == "false":
            warnings.warn(
                f"'{model}' was exported with its initial weights, so its scores mean nothing: export a trained model.",
                stacklevel=2,
            )

    @property
    def decision_threshold(self) -> float | None:
        """Score above which an image is called anomalous; ``None`` where the model decides and does not say."""
        if self.threshold is not None:
            return self.threshold
        return self.model_threshold if "pred_label" in self._outputs else UNLABELLED_THRESHOLD

    @property
    def calibration_scores(self) -> list[float] | None:
        """Scores of the good parts that the model was calibrated with; ``None`` if it was not."""
        text = self.metadata.get(CALIBRATION_SCORES)
        return None if text is None else [float(score) for score in text.split()]

    @cached_property
    def model_hash(self) -> str:
        """Hash of the model's files, 16 hexadecimal digits."""
        return hash_model(self.model)

    def predict(self, image: Source | Iterable[Source]) -> Prediction | list[Prediction]:
        """Score an image, or several.

        Args:
            image: A path, the content of a file as bytes or as a binary file object, a Pillow image or an array; or an
                iterable of these, or an array ``(B, H, W, C)``.

        Returns:
            One prediction for one image, otherwise a list in the order of the images.

        Raises:
            FileNotFoundError: If there is no such file.
            UnreadableImageError: If a file holds no image, or one that is too large.
            ValueError: If an array is no image, or a score is not finite.
        """
        if is_one(image):
            return self._finish(self._start(image), image)
        return list(self.stream(image))  # type: ignore[arg-type]  # A TypeGuard says nothing of the other case.

    def stream(
        self, images: Iterable[Source], skip: Callable[[Source, Exception], None] | None = None
    ) -> Iterator[Prediction]:
        """Score images one after the other, several at a time, and yield the predictions in their order.

        A prediction comes as soon as it is computed, also while the iterable waits for its next image. Only a few
        images are in memory at a time, so the iterable may be endless. It is read in a thread of its own; if it raises,
        the predictions of all images before come first.

        Args:
            images: Images of any kind that :meth:`predict` takes.
            skip: Called with every image that cannot be read or has no finite score, and the reason, between the
                predictions of its neighbours; the image is then skipped. By default the error is raised.
        """
        with closing(self.attempt(images)) as outcomes:
            for image, outcome in outcomes:
                if isinstance(outcome, Prediction):
                    yield outcome
                elif skip is None:
                    raise outcome
                else:
                    skip(image, outcome)  # type: ignore[arg-type]  # Only images were given.

    def attempt(
        self, images: Iterable[Source | Exception]
    ) -> Generator[tuple[Source | Exception, Prediction | Exception], None, None]:
        """Score images as :meth:`stream` does, and yield each with its prediction, or with the reason why it has none.

        Args:
            images: Images, or errors in the place of images that could not be had, which are passed on.
        """
        budget = Budget(_IN_FLIGHT)
        ahead = start_ahead(images, partial(self._start, budget=budget), self._jobs + 2)
        with closing(ahead) as jobs, closing(budget):  # The budget first, which a job that is to start may wait for.
            for image, job in jobs:
                try:
                    if isinstance(job, Exception):
                        raise job
                    outcome: Prediction | Exception = self._finish(job, image, budget)
                except (OSError, ValueError, ImportError) as error:
                    outcome = error
                yield image, outcome

    def calibrate(
        self,
        good: Iterable[Source],
        bad: Iterable[Source],
        output: str | Path,
        false_alarms: float | None = None,
        recall: float | None = None,
        pixel_false_alarms: float = 0.005,
        scored: Callable[[int], object] = lambda _: None,
    ) -> Calibration:
        """Write a copy of the model with thresholds from images of a line's own parts.

        The scores and maps of the copy are those of the model; what it calls anomalous changes. It holds the scores of
        at most 2,000 good parts, drawn at random, with which later ones can be compared.

        Args:
            good: Images of good parts.
            bad: Images of bad parts; may be empty where ``false_alarms`` is given.
            output: The new ``.xml`` file.
            false_alarms: Largest probability, in (0, 1), that a new good part is called anomalous.
            recall: Smallest probability, in (0, 1), that a new bad part is. Without both, the best F1 score counts.
            pixel_false_alarms: Fraction of good parts' pixels, in (0, 1), that may exceed the pixel threshold.
            scored: Called after each image with the number of those that have been scored.

        Raises:
            FileExistsError: If the new file is there already.
            UnreadableImageError: If an image cannot be read.
            ValueError: If there are too few images, or an argument is out of its range.
        """
        output = Path(output)
        if output.suffix != ".xml":
            msg = f"The calibrated model is to be '{output}', but its name must end in .xml."
            raise ValueError(msg)
        for file in (output, output.with_suffix(".bin")):
            if file.exists():
                msg = f"'{file}' is there already: name another file (--output), or delete it."
                raise FileExistsError(msg)
        good, bad = list(good), list(bad)
        check_pictures(len(good), len(bad), false_alarms, recall)
        pixels = PixelQuantile(len(good), pixel_false_alarms) if "anomaly_map" in self._outputs else None
        scores: list[float] = []
        for prediction in self.stream([*good, *bad]):
            if pixels is not None and prediction.anomaly_map is not None and len(scores) < len(good):
                pixels.add(prediction.anomaly_map)
            scores.append(prediction.score)
            scored(len(scores))
        good_scores, bad_scores = np.split(np.array(scores, dtype=np.float32), [len(good)])
        threshold, guarantee = choose_threshold(good_scores, bad_scores, false_alarms, recall)
        pixel_threshold = None if pixels is None else pixels.compute()
        kept = np.random.default_rng(0).permutation(good_scores)[:_KEPT_SCORES]
        write_calibrated(self.model, output, threshold, pixel_threshold, kept.tolist())
        return Calibration(threshold, pixel_threshold, good_scores, bad_scores, guarantee)

    def _start(self, image: Source | Exception, budget: Budget | None = None) -> _Job:
        """Read an image into a request's memory and hand it to the model."""
        if isinstance(image, Exception):
            raise image
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        taken = 0

        def allocate(size: Size) -> npt.NDArray[np.float32]:
            nonlocal taken
            if budget is not None:
                budget.take(size[0] * size[1])
            taken = size[0] * size[1]
            tensor = request.get_input_tensor()
            if tuple(tensor.shape) != (1, 3, *size):
                tensor.shape = (1, 3, *size)
            return tensor.data

        try:
            to_input(image, self._choose_size, self._max_pixels, allocate)
            request.start_async()
        except BaseException:
            self._release(_Job(request, taken), budget)
            raise
        return _Job(request, taken)

    def _finish(self, job: _Job, source: Any, budget: Budget | None = None) -> Prediction:
        """Wait for the model and return what it gives."""
        try:
            job.request.wait()
            outputs = [job.request.get_output_tensor(index).data for index in range(len(self._compiled.outputs))]
            return self._interpret(outputs, source)
        finally:
            self._release(job, budget)

    def _release(self, job: _Job, budget: Budget | None) -> None:
        if budget is not None:
            budget.give_back(job.pixels)
        if job.pixels <= _KEPT:
            self._idle.append(job.request)

    def _choose_size(self, size: Size) -> Size:
        """Return the size to which an image is to be resized before the model takes it."""
        if self.input_size is not None:
            return self.input_size
        if self.metadata.get("resize") != "antialiased":
            return size
        side = max(_SMALLEST_SIDE, _REDUCTION * max(map(int, self.metadata["image_shape"].split())))
        return limit_sides(side)(size)

    def _interpret(self, arrays: Sequence[npt.NDArray[Any]], source: Source) -> Prediction:
        outputs = {name: arrays[index] for name, index in self._outputs.items()}
        anomaly_map = _first(outputs["anomaly_map"]) if "anomaly_map" in outputs else None
        mask = _first(outputs["pred_mask"]).astype(bool) if "pred_mask" in outputs else None
        score = float(outputs["pred_score" if "pred_score" in outputs else "anomaly_map"].max())
        if not np.isfinite(score):
            name = f"'{os.fsdecode(source)}'" if isinstance(source, str | os.PathLike) else "an image"
            msg = f"The model scores {name} {score}, which says nothing: export it again, or try another device."
            raise ValueError(msg)
        if self.threshold is not None:
            is_anomalous = score > self.threshold
        elif "pred_label" in outputs:
            is_anomalous = bool(outputs["pred_label"].item())
        else:
            is_anomalous = score > UNLABELLED_THRESHOLD
        return Prediction(score, is_anomalous, anomaly_map, mask, source)


def _first(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the map of the only image of a batch, ``(H, W)``, in memory of its own."""
    return np.array(values.reshape(values.shape[-2:]))

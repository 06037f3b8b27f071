# SPDX-License-Identifier: Apache-2.0
"""Run an exported anomaly detector."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openvino
from PIL import Image

from ganomaly_plugin.image_file import decode, to_rgb

Source = str | Path | Image.Image | npt.NDArray[Any]
"""A file, a Pillow image, or an array as :func:`to_input` takes it."""


class NotADetectorError(ValueError):
    """The model cannot be read, or has not the inputs and outputs of an anomaly detector. The message says which."""


@cache
def shared_core() -> openvino.Core:
    """Give the one OpenVINO core of this process, which is never freed.

    Every core replaces the main thread's stack for signals, and puts back the one that it found when it is freed. Cores
    freed in another order than the reverse of their creation leave a stack that is no longer mapped, and the next
    signal, such as that of an ending worker of a data loader, kills the process.

    On CPUs it computes in float32 unless told otherwise. OpenVINO would take bfloat16 where the processor has it, and a
    score, the small difference of two codes, would differ by a thousandth from that on another machine.
    """
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return core


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


class Detector:
    """An anomaly detector exported to OpenVINO by anomalib, this package's models or any other.

    Args:
        model: The ``.xml`` file, with its ``.bin`` beside it, or an ``.onnx`` file.
        device: OpenVINO's name of the device, such as ``CPU``, ``GPU`` or ``AUTO``.
        hint: ``latency`` for one image at a time, ``throughput`` for streams.
        threshold: User-facing score above which an image is anomalous; ``None`` leaves the decision to the model.
        cache_dir: Folder for compiled models, which shortens later starts on GPUs and NPUs.

    Raises:
        FileNotFoundError: If a file of the model is missing.
        NotADetectorError: If it is no anomaly detector.
        ValueError: If the device does not exist.

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
    ) -> None:
        self.threshold = threshold
        core = shared_core()
        network = _read(core, Path(model))
        known = core.available_devices
        if device.split(".")[0].split(":")[0] not in {*(name.split(".")[0] for name in known), "AUTO", "HETERO"}:
            msg = f"There is no device '{device}' here: choose one of {', '.join([*known, 'AUTO'])}."
            raise ValueError(msg)
        config: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper()}
        if cache_dir is not None:
            config["CACHE_DIR"] = str(cache_dir)
        self._compiled = core.compile_model(network, device, config)
        self._jobs = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._outputs = {name: index for index, port in enumerate(self._compiled.outputs) for name in port.names}
        shape = network.input(0).partial_shape
        self.input_size: tuple[int, int] | None = None
        if shape[2].is_static and shape[3].is_static:
            self.input_size = (shape[2].get_length(), shape[3].get_length())
        self.metadata = _metadata(network)
        if self.metadata.get("trained") == "false":
            warnings.warn(
                f"'{model}' was exported with its initial weights, so its scores mean nothing: export a trained model.",
                stacklevel=2,
            )

    def predict(self, image: Source | Iterable[Source]) -> Prediction | list[Prediction]:
        """Score an image, or several.

        Args:
            image: A path, a Pillow image or an array; or an iterable of these, or an array ``(B, H, W, C)``.

        Returns:
            One prediction for one image, otherwise a list in the order of the images.

        Raises:
            FileNotFoundError: If there is no such file.
            UnreadableImageError: If a file holds no image.
            ValueError: If an array is no image, or a score is not finite.
        """
        if isinstance(image, str | Path | Image.Image) or (isinstance(image, np.ndarray) and image.ndim < 4):
            return self._interpret(self._compiled(self._prepare(image)).to_tuple(), image)
        return list(self.stream(image))

    def stream(
        self, images: Iterable[Source], skip: Callable[[Source, Exception], None] | None = None
    ) -> Iterator[Prediction]:
        """Score images one after the other, several at a time, and yield the predictions in their order.

        Only a few images are in memory at a time, so the iterable may be endless.

        Args:
            images: Paths, Pillow images or arrays.
            skip: Called with every image that cannot be read and the reason; the image is then skipped. By default the
                error is raised.
        """
        idle = [self._compiled.create_infer_request() for _ in range(self._jobs)]
        pending: deque[tuple[openvino.InferRequest, Source]] = deque()

        def next_prediction() -> Prediction:
            request, source = pending.popleft()
            request.wait()
            arrays = [request.get_output_tensor(index).data for index in range(len(self._compiled.outputs))]
            idle.append(request)
            return self._interpret(arrays, source)

        try:
            for image in images:
                try:
                    pixels = self._prepare(image)
                except (OSError, ValueError) as error:
                    if skip is None:
                        raise
                    skip(image, error)
                    continue
                request = idle.pop()
                request.start_async({0: pixels})
                pending.append((request, image))
                while pending and (not idle or pending[0][0].wait_for(0)):
                    yield next_prediction()
            while pending:
                yield next_prediction()
        finally:
            for request, _ in pending:  # A stream that is closed early leaves jobs behind.
                request.wait()

    def _prepare(self, image: Source) -> npt.NDArray[np.float32]:
        pixels = to_input(image)
        if self.input_size is not None and pixels.shape[-2:] != self.input_size:
            height, width = self.input_size
            channels = [
                Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in pixels[0]
            ]
            pixels = np.stack([np.asarray(channel) for channel in channels])[np.newaxis]
        return pixels

    def _interpret(self, arrays: Sequence[npt.NDArray[Any]], source: Source) -> Prediction:
        outputs = {name: arrays[index] for name, index in self._outputs.items()}
        anomaly_map = _first(outputs["anomaly_map"]) if "anomaly_map" in outputs else None
        mask = _first(outputs["pred_mask"]).astype(bool) if "pred_mask" in outputs else None
        score = float(outputs["pred_score" if "pred_score" in outputs else "anomaly_map"].max())
        if not np.isfinite(score):
            name = f"'{source}'" if isinstance(source, str | Path) else "an image"
            msg = f"The model scores {name} {score}, which says nothing: export it again, or try another device."
            raise ValueError(msg)
        if self.threshold is not None:
            is_anomalous = score > self.threshold
        elif "pred_label" in outputs:
            is_anomalous = bool(outputs["pred_label"].item())
        else:
            is_anomalous = score > 0.5
        return Prediction(score, is_anomalous, anomaly_map, mask, source)


def to_input(image: Source) -> npt.NDArray[np.float32]:
    """Return an image as the model takes it, ``(1, 3, H, W)`` in [0, 1].

    Args:
        image: A path, a Pillow image, or an array ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` in RGB: integers up to
            their type's maximum, or floats in [0, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If the file holds no image.
        ValueError: If the array is no image.
    """
    if isinstance(image, np.ndarray):
        pixels = image if image.ndim == 3 else image[..., np.newaxis]
        if image.ndim not in {2, 3} or pixels.shape[2] not in {1, 3} or 0 in pixels.shape:
            msg = f"An array of shape {image.shape} is no image: give (H, W), (H, W, 1) or (H, W, 3)."
            raise ValueError(msg)
    else:
        pixels = to_rgb(image) if isinstance(image, Image.Image) else decode(image, to_rgb)
    if np.issubdtype(pixels.dtype, np.unsignedinteger):
        pixels = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    elif not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= 0 and pixels.max() <= 1):
        msg = f"An array of {pixels.dtype} must hold unsigned integers, or floats in [0, 1]: rescale it."
        raise ValueError(msg)
    planes = np.broadcast_to(pixels.transpose(2, 0, 1), (3, *pixels.shape[:2]))
    return np.ascontiguousarray(planes, dtype=np.float32)[np.newaxis]


def _read(core: openvino.Core, path: Path) -> openvino.Model:
    for file in (path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])):
        if not file.is_file():
            msg = f"There is no file '{file}': export the model, and keep .xml and .bin side by side."
            raise FileNotFoundError(msg)
    try:
        network = core.read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        msg = f"'{path}' is no model that OpenVINO can read ({reason}): export it again."
        raise NotADetectorError(msg) from error
    names = {name for port in network.outputs for name in port.names}
    rank = network.input(0).partial_shape.rank
    if (
        len(network.inputs) != 1
        or rank.is_dynamic
        or rank.get_length() != 4
        or not names & {"pred_score", "anomaly_map"}
    ):
        msg = (
            f"'{path}' is no anomaly detector: it has {len(network.inputs)} inputs and the outputs "
            f"{sorted(names)}, but needs one image as input and pred_score or anomaly_map as output."
        )
        raise NotADetectorError(msg)
    return network


def _metadata(network: openvino.Model) -> dict[str, str]:
    """Return what the export says of itself."""
    metadata: dict[str, str] = {}
    for section in ("model_info", "ganomaly_plugin"):
        if network.has_rt_info([section]):
            values = network.get_rt_info([section]).astype(dict)
            metadata |= {name: network.get_rt_info([section, name]).astype(str) for name in values}
    return metadata


def _first(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the map of the only image of a batch, ``(H, W)``, in memory of its own."""
    return np.array(values.reshape(values.shape[-2:]))

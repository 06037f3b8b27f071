# SPDX-License-Identifier: Apache-2.0
"""Exported models as files: reading them, what they say of themselves, and new thresholds."""

import hashlib
import re
from functools import cache
from pathlib import Path

import numpy as np
import openvino

CALIBRATION_SCORES = "calibration_scores"
"""Name of the metadata that holds the scores of the good parts that a model was calibrated with."""

_HASH_LENGTH = 16
_BLOCK = 1 << 20


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


def read_model(path: Path) -> openvino.Model:
    """Read a model and check that it is an anomaly detector.

    Raises:
        FileNotFoundError: If one of its files is missing.
        NotADetectorError: If it is no anomaly detector.
    """
    if path.suffix == ".bin":
        msg = f"'{path}' holds weights only: give '{path.with_suffix('.xml')}', the model beside it."
        raise NotADetectorError(msg)
    for file in model_files(path):
        if not file.is_file():
            msg = f"There is no file '{file}': export the model, and keep .xml and .bin side by side."
            raise FileNotFoundError(msg)
    try:
        model = shared_core().read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        stored = re.search(r"externally stored data in file \(([^,]+),", reason)
        advice = f"put its weights, an undamaged '{stored[1]}', beside it" if stored else "export it again"
        msg = f"'{path}' is no model that OpenVINO can read ({reason}): {advice}."
        raise NotADetectorError(msg) from error
    names = {name for port in model.outputs for name in port.names}
    rank = model.input(0).partial_shape.rank
    if len(model.inputs) != 1 or rank.is_dynamic or rank.get_length() != 4 or not names & {"pred_score", "anomaly_map"}:
        msg = (
            f"'{path}' is no anomaly detector: it has {len(model.inputs)} inputs and the outputs "
            f"{sorted(names)}, but needs one image as input and pred_score or anomaly_map as output."
        )
        raise NotADetectorError(msg)
    return model


def hash_model(path: Path) -> str:
    """Return a hash of the model's files, 16 hexadecimal digits that change with any of their bytes."""
    digest = hashlib.sha256()
    for file in model_files(path):
        with file.open("rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()[:_HASH_LENGTH]


def model_files(path: Path) -> list[Path]:
    """Return the files that a model consists of."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def read_metadata(model: openvino.Model) -> dict[str, str]:
    """Return what the export says of itself."""
    metadata: dict[str, str] = {}
    for section in ("model_info", "ganomaly_plugin"):
        if model.has_rt_info([section]):
            values = model.get_rt_info([section]).astype(dict)
            metadata |= {name: model.get_rt_info([section, name]).astype(str) for name in values}
    return metadata


def read_threshold(model: openvino.Model, decision: str = "pred_label") -> float | None:
    """Return the threshold with which a model makes an output of its own, in the unit of its scores.

    Args:
        model: The model.
        decision: ``pred_label`` for images, ``pred_mask`` for pixels.

    Returns:
        ``None`` where the model gives no such output, or decides by something else than one constant.
    """
    port = _find_output(model, decision)
    comparison = None if port is None else port.get_node().input_value(0).get_node()
    if comparison is None or comparison.get_type_name() != "Greater":
        return None
    constant = comparison.input_value(1).get_node()
    while constant.get_type_name() == "Convert":  # Of a constant that is stored in half precision.
        constant = constant.input_value(0).get_node()
    if constant.get_type_name() != "Constant" or constant.get_data().size != 1:
        return None
    return float(constant.get_data().item())


def write_calibrated(
    path: Path, output: Path, image_threshold: float, pixel_threshold: float | None, scores: list[float]
) -> None:
    """Write a copy of a model that decides by other thresholds; its scores and maps stay as they are.

    Args:
        path: The model.
        output: The new ``.xml`` file, which is not there yet; its ``.bin`` goes beside it.
        image_threshold: Score above which ``pred_label`` is to be true.
        pixel_threshold: Value of the map above which ``pred_mask`` is to be true; ``None`` if there is no map.
        scores: Scores of good parts, to compare later ones with.
    """
    model = read_model(path)
    old = read_metadata(model)
    for score, decision, threshold, kind in (
        ("pred_score", "pred_label", image_threshold, "image"),
        ("anomaly_map", "pred_mask", pixel_threshold, "pixel"),
    ):
        if threshold is None:
            continue
        _decide(model, score, decision, threshold)
        model.set_rt_info(f"{threshold:.9g}", ["model_info", f"{kind}_threshold"])
        raw = float(old.get(f"raw_{kind}_threshold", "nan"))
        if np.isfinite(raw):  # A score is s / (s + t), so that s is proportional to its odds.
            earlier = float(old[f"{kind}_threshold"])
            raw *= threshold / (1 - threshold) * (1 - earlier) / earlier
            model.set_rt_info(f"{raw:.9g}", ["ganomaly_plugin", f"raw_{kind}_threshold"])
    model.set_rt_info(" ".join(f"{score:.7g}" for score in scores), ["ganomaly_plugin", CALIBRATION_SCORES])
    unfinished = output.with_stem(f"{output.stem}.unfinished")
    openvino.save_model(model, unfinished, compress_to_fp16=False)  # Weights that are FP16 already stay so.
    for suffix in (".bin", ".xml"):
        unfinished.with_suffix(suffix).replace(output.with_suffix(suffix))


def _decide(model: openvino.Model, score: str, decision: str, threshold: float) -> None:
    """Make an output of a model say whether another one is greater than a threshold."""
    values = _find_output(model, score)
    if values is None:  # anomalib's score is the largest value of the map where there is nothing else.
        values = _find_output(model, "anomaly_map")
        assert values is not None  # noqa: S101  (read_model has checked it)
        source = openvino.opset13.reduce_max(values.get_node().input_value(0), np.array([1, 2, 3]))
    else:
        source = values.get_node().input_value(0)
    greater = openvino.opset13.greater(source, np.float32(threshold))
    greater.output(0).set_names({decision})
    old = _find_output(model, decision)
    if old is not None:
        old.get_node().input(0).replace_source_output(greater.output(0))
    else:
        model.add_outputs([greater.output(0)])
    model.validate_nodes_and_infer_types()


def _find_output(model: openvino.Model, name: str) -> openvino.Output | None:
    return next((port for port in model.outputs if name in port.names), None)

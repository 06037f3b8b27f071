# SPDX-License-Identifier: Apache-2.0
"""Metadata and quantisation of exported OpenVINO files."""

import logging
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.models import AnomalibModule
from torch import nn
from torchmetrics import Metric

from ganomaly_plugin.models.components.metrics import AUROC

logger = logging.getLogger(__name__)

OPSET = 18
"""Oldest set of ONNX's operators that PyTorch's exporter writes."""
LARGE_DROP = 0.1
"""Drop of a metric by quantisation above which there is a warning, as in anomalib."""
LARGEST_ONNX_FILE = 1_900_000_000
"""Bytes of weights in one ONNX file, whose format ends at 2 GiB. Larger models have a second file of weights."""


def metadata(model: AnomalibModule, trained_on: str, trained: bool) -> dict[str, dict[str, str]]:
    """Return the metadata of an exported model, by section and name.

    Args:
        model: The model. Its user-facing scores have their threshold at 0.5.
        trained_on: Name and category of the data.
        trained: Whether the weights are those of a training.

    Returns:
        ``model_info``, what Intel's Model API reads, and ``ganomaly_plugin``, what else a client may want to know.
    """
    post_processor: Any = model.post_processor
    height, width = model.input_size or (0, 0)
    return {
        "model_info": {
            "model_type": "AnomalyDetection",
            "task": "segmentation",
            "labels": "Normal Anomaly",
            "image_threshold": "0.5",
            "pixel_threshold": "0.5",
            "normalization_scale": "1",
            "image_shape": f"{height} {width}",
        },
        "ganomaly_plugin": {
            "version": version("ganomaly-plugin"),
            "model": type(model).__name__,
            "trained_on": trained_on,
            "trained": str(trained).lower(),
            "white_level": str(model.hparams["white_level"]),
            # A client may shrink large images itself before the graph does, in two steps, without changing scores.
            "resize": "antialiased" if getattr(model.pre_processor, "starts_with_resize", False) else "other",
            "raw_image_threshold": f"{float(post_processor.image_threshold):.9g}" if post_processor else "none",
            "raw_pixel_threshold": f"{float(post_processor.pixel_threshold):.9g}" if post_processor else "none",
        },
    }


def onnx_settings(model: nn.Module) -> dict[str, Any]:
    """Return arguments of ``torch.onnx.export`` for a model of this size.

    Args:
        model: What is exported.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"opset_version": OPSET, "external_data": weights > LARGEST_ONNX_FILE}


def check_opset(version: int | None) -> None:
    """Refuse an operator set that would be converted in vain.

    Raises:
        ValueError: If the version is too low.
    """
    if version is not None and version < OPSET:
        msg = f"opset_version is {version}, but PyTorch's exporter writes {OPSET} and later: leave it out."
        raise ValueError(msg)


def check_images(compression: CompressionType | None, datamodule: AnomalibDataModule | None) -> None:
    """Refuse a quantisation that has nothing to calibrate on.

    Args:
        compression: How the weights are to be compressed, ``None`` for not at all.
        datamodule: Images for the calibration.

    Raises:
        ValueError: If the compression needs images and there is no datamodule.
    """
    if datamodule is None and compression in {CompressionType.INT8_PTQ, CompressionType.INT8_ACQ}:
        # So begins anomalib's message, whichever the compression.
        msg = (
            "Datamodule must be provided for OpenVINO INT8_PTQ compression, and for INT8_ACQ, which calibrate on its "
            "images: name one, on the command line with --data."
        )
        raise ValueError(msg)


def write_metadata(path: Path, sections: dict[str, dict[str, str]]) -> None:
    """Write metadata into the ``rt_info`` of an OpenVINO file, in place."""
    import openvino

    model = openvino.Core().read_model(path)
    for section, values in sections.items():
        for name, value in values.items():
            model.set_rt_info(value, [section, name])
    described = path.with_stem(f"{path.stem}.described")
    openvino.save_model(model, described, compress_to_fp16=False)  # Weights that are FP16 already stay so.
    del model  # It keeps the old weights open.
    for suffix in (".bin", ".xml"):
        described.with_suffix(suffix).replace(path.with_suffix(suffix))


def quantise(model: Any, datamodule: AnomalibDataModule | None = None) -> Any:
    """Quantise the convolutions of an OpenVINO model that tolerate it, calibrated on the validation images.

    Raises:
        ValueError: If there is no datamodule.
    """
    import nncf

    return nncf.quantize(model, _calibration_images(model, datamodule), **_quantisation(model))


def quantise_with_accuracy_control(
    model: Any,
    datamodule: AnomalibDataModule | None = None,
    metric: Metric | None = None,
    task: TaskType | None = None,
    max_drop: float = 0.01,
) -> Any:
    """Quantise likewise, and take layers back until a metric of the test images drops no further.

    Args:
        model: OpenVINO model.
        datamodule: Images for calibration and test.
        metric: Metric to keep, image AUROC by default.
        task: Ignored: the metric says what counts.
        max_drop: Largest drop of the metric, in [0, 1].

    Raises:
        ValueError: If there is no datamodule, or ``max_drop`` is out of its range.
    """
    import nncf

    del task
    if not 0 <= max_drop <= 1:
        msg = f"max_drop must be between 0 and 1, got {max_drop}."
        raise ValueError(msg)
    if max_drop > LARGE_DROP:
        logger.warning("max_drop=%g is a large value: common ones are 0.01 to 0.03.", max_drop)
    calibration = _calibration_images(model, datamodule)
    assert datamodule is not None  # noqa: S101  (or the calibration would have said so)
    datamodule.setup("test")
    kept: Any = metric or AUROC(fields=["pred_score", "gt_label"])

    def validate(compiled: Any, batches: Iterable[ImageBatch]) -> float:
        kept.reset()
        for batch in batches:
            images: Any = batch.image
            outputs = compiled(images.numpy())
            predicted = {port.any_name: torch.from_numpy(outputs[port]) for port in compiled.outputs}
            for name in ("pred_score", "pred_label"):
                predicted[name] = predicted[name].flatten()
            kept.update(batch.update(in_place=False, **predicted))
        return float(kept.compute())

    test_images = nncf.Dataset(datamodule.test_dataloader())
    return nncf.quantize_with_accuracy_control(
        model, calibration, test_images, validate, max_drop=max_drop, **_quantisation(model)
    )


CONVOLUTIONS = {"Convolution", "ConvolutionBackpropData", "GroupConvolution"}
"""OpenVINO's names of the operations that gain from 8 bits."""


def _calibration_images(model: Any, datamodule: AnomalibDataModule | None) -> Any:
    """Return the validation images, or the training images where there is no validation, for NNCF.

    Raises:
        ValueError: If there is no datamodule.
    """
    import nncf

    check_images(CompressionType.INT8_PTQ, datamodule)
    assert datamodule is not None  # noqa: S101  (or the check would have said so)
    datamodule.setup("fit")
    batch = model.input(0).partial_shape[0]
    if batch.is_static:
        datamodule.train_batch_size = datamodule.eval_batch_size = batch.get_length()
    validated = getattr(datamodule, "val_data", None) is not None  # anomalib sets it only where there are images.
    loader: Any = (validated and datamodule.val_dataloader()) or datamodule.train_dataloader()
    return nncf.Dataset(loader, lambda batch: batch.image.numpy())


def _quantisation(model: Any) -> dict[str, Any]:
    """Return NNCF's settings for a model whose scores must not change."""
    import nncf

    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "ignored_scope": _full_precision_layers(model),
        # The fast way estimates each layer's shift on its own, and the scores, small differences of the last outputs,
        # move by a tenth. This way follows the shifts through the graph, and they move by a hundredth.
        "fast_bias_correction": False,
    }


def _full_precision_layers(model: Any) -> Any:
    """Return what must not be quantised.

    A score is the small difference of two large codes, which rounding errors exceed: all arithmetic but
    convolutions keeps its precision. So do the layers next to a latent vector, whose 8-bit kernels for one single pixel
    give wrong results on CPUs, and the blur of the map, which has one channel and gains nothing.
    """
    import nncf

    names, types = [], set()
    for operation in model.get_ordered_ops():
        if operation.get_type_name() not in CONVOLUTIONS:
            types.add(operation.get_type_name())
            continue
        shapes = [operation.input(0).get_partial_shape(), operation.output(0).get_partial_shape()]
        pixels = [[dimension.get_length() for dimension in list(shape)[2:] if dimension.is_static] for shape in shapes]
        channels = [shape[1].get_length() for shape in shapes if shape[1].is_static]
        if [1, 1] in pixels or channels == [1, 1]:
            names.append(operation.get_friendly_name())
    return nncf.IgnoredScope(names=names, types=sorted(types), validate=False)

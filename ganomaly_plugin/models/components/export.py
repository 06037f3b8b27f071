# SPDX-License-Identifier: Apache-2.0
"""Exports that hold what infers and say what they are."""

from collections.abc import Iterable
from copy import copy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.models import AnomalibModule
from torchmetrics import Metric

from ganomaly_plugin.models.components.metrics import AUROC

if TYPE_CHECKING:
    Mixin = AnomalibModule
else:
    Mixin = object  # anomalib takes every direct subclass of its module for a model.


class SelfDescribingExport(Mixin):
    """Mixin that leaves the training's networks out of exports and writes a model's facts into its OpenVINO file.

    The facts are in ``rt_info``, in the section ``model_info`` what Intel's Model API reads, and in the section
    ``ganomaly_plugin`` what else a client may want to know.
    """

    training_only: tuple[str, ...] = ()
    """Names of the submodules that inference does without."""
    trained_on: str = "unknown"
    """Name and category of the datamodule that the model was trained on, kept in checkpoints."""

    def on_fit_start(self) -> None:
        """Note what the model is trained on."""
        super().on_fit_start()
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self.trained_on = "/".join(part for part in (datamodule.name, datamodule.category) if part)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the model was trained on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["trained_on"] = self.trained_on

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what the model was trained on."""
        super().on_load_checkpoint(checkpoint)
        self.trained_on = checkpoint["trained_on"]

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export to PyTorch as anomalib does, without the training's networks."""
        exported = copy(self)
        exported._modules = {name: module for name, module in self._modules.items() if name not in self.training_only}
        return AnomalibModule.to_torch(exported, export_root, model_file_name)

    def to_openvino(self, export_root: Path | str, model_file_name: str = "model", **kwargs: Any) -> Path:
        """Export to OpenVINO as anomalib does, and add the model's facts.

        Args:
            export_root: Folder of the export.
            model_file_name: Name of the file without its ending.
            **kwargs: Further arguments of anomalib's ``to_openvino``.

        Returns:
            Path of the ``.xml`` file.
        """
        path = super().to_openvino(export_root, model_file_name, **kwargs)
        import openvino

        model = openvino.Core().read_model(path)
        for section, facts in self.facts().items():
            for name, value in facts.items():
                model.set_rt_info(value, [section, name])
        described = path.with_stem(f"{path.stem}.described")
        openvino.save_model(model, described, compress_to_fp16=False)  # Weights that are FP16 already stay so.
        del model  # It keeps the old weights open.
        for suffix in (".bin", ".xml"):
            described.with_suffix(suffix).replace(path.with_suffix(suffix))
        return path

    @staticmethod
    def _post_training_quantization_ov(model: Any, datamodule: AnomalibDataModule | None = None) -> Any:
        """Quantise the convolutions that bear it, calibrated on the datamodule's validation images."""
        import nncf

        images = _calibration_images(model, datamodule)
        return nncf.quantize(model, images, **_quantisation(model))

    @staticmethod
    def _accuracy_control_quantization_ov(
        model: Any,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = 0.01,
    ) -> Any:
        """Quantise in the same way, and take layers back until the metric on the test images drops no further.

        Without a metric, it is the image AUROC.
        """
        import nncf

        del task  # The metric says what counts.
        if not 0 <= max_drop <= 1:
            msg = f"max_drop is {max_drop}, but must lie in [0, 1]."
            raise ValueError(msg)
        calibration = _calibration_images(model, datamodule)
        assert datamodule is not None  # noqa: S101  (or the calibration would have said so)
        datamodule.setup("test")
        measure: Any = metric or AUROC(fields=["pred_score", "gt_label"])

        def validate(compiled: Any, batches: Iterable[ImageBatch]) -> float:
            measure.reset()
            for batch in batches:
                images: Any = batch.image
                outputs = compiled(images.numpy())
                predicted = {port.any_name: torch.from_numpy(outputs[port]) for port in compiled.outputs}
                for name in ("pred_score", "pred_label"):
                    predicted[name] = predicted[name].flatten()
                measure.update(batch.update(in_place=False, **predicted))
            return float(measure.compute())

        return nncf.quantize_with_accuracy_control(
            model,
            calibration,
            nncf.Dataset(datamodule.test_dataloader()),
            validate,
            max_drop=max_drop,
            **_quantisation(model),
        )

    def facts(self) -> dict[str, dict[str, str]]:
        """Return the sections of ``rt_info``; user-facing scores have their threshold at 0.5."""
        post_processor: Any = self.post_processor
        height, width = self.input_size or (0, 0)
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
                "model": type(self).__name__,
                "trained_on": self.trained_on,
                "raw_image_threshold": f"{float(post_processor.image_threshold):.9g}" if post_processor else "none",
                "raw_pixel_threshold": f"{float(post_processor.pixel_threshold):.9g}" if post_processor else "none",
            },
        }


CONVOLUTIONS = {"Convolution", "ConvolutionBackpropData", "GroupConvolution"}
"""OpenVINO's names of the operations that gain from 8 bits."""


def _calibration_images(model: Any, datamodule: AnomalibDataModule | None) -> Any:
    """Return the validation images, or the training images where there is no validation, for NNCF.

    Raises:
        ValueError: If there is no datamodule.
    """
    import nncf

    if datamodule is None:
        msg = "Quantisation needs images to calibrate on: name the datamodule, on the command line with --data."
        raise ValueError(msg)
    datamodule.setup("fit")
    batch = model.input(0).partial_shape[0]
    if batch.is_static:
        datamodule.train_batch_size = datamodule.eval_batch_size = batch.get_length()
    loader: Any = datamodule.val_dataloader() or datamodule.train_dataloader()
    return nncf.Dataset(loader, lambda batch: batch.image.numpy())


def _quantisation(model: Any) -> dict[str, Any]:
    """Return NNCF's settings for a model whose scores must survive."""
    import nncf

    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "ignored_scope": _full_precision_layers(model),
        # The fast way estimates each layer's shift on its own, and the scores, small differences of what comes out at
        # the end, move by a tenth. This way follows the shifts through the graph, and they move by a hundredth.
        "fast_bias_correction": False,
    }


def _full_precision_layers(model: Any) -> Any:
    """Return what must not be quantised.

    A score is the small difference of two large codes, so that rounding them drowns it: all arithmetic but
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

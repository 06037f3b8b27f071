# SPDX-License-Identifier: Apache-2.0
"""Exports that hold what infers and say what they are."""

from copy import copy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.models import AnomalibModule

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

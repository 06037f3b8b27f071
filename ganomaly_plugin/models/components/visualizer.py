# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a reconstructing model sees."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.models import AnomalibModule
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import add_text_to_image, create_image_grid, visualize_image
from lightning.pytorch import Trainer
from PIL import Image

from ganomaly_plugin.image_reader import read_image
from ganomaly_plugin.models.components.pre_processor import WHITE_LEVEL
from ganomaly_plugin.picture_files import PictureFiles


class ReconstructionVisualizer(ImageVisualizer):
    """anomalib's image visualiser with the reconstruction beside the input.

    It takes reconstructions from the attribute ``reconstruction`` of scored batches, ``(B, 3, H, W)`` in [0, 1]; where
    there are none, it draws as anomalib does. All arguments are those of anomalib's ``ImageVisualizer``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = PictureFiles()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: ImageBatch, batch: ImageBatch, *args: Any
    ) -> None:
        """Save one picture per image of the batch."""
        del args
        reconstructions: torch.Tensor | None = getattr(outputs, "reconstruction", None)
        self.output_dir = Path(self.output_dir or Path(trainer.default_root_dir) / "images")
        datamodule: Any = getattr(trainer, "datamodule", None)
        data_set = (getattr(datamodule, "name", None), getattr(datamodule, "category", None))
        shown = [None] * len(batch) if reconstructions is None else reconstructions.cpu()
        for item, reconstruction in zip(batch, shown, strict=True):
            filename = self._files.find(item.image_path or "", self.output_dir, *data_set)
            gain = WHITE_LEVEL / pl_module.hparams["white_level"]
            if item.image_path and gain > 1:  # The file looks nearly black.
                image = (torch.as_tensor(read_image(item.image_path, as_tensor=True)) * gain).clamp(max=1)
                item = replace(item, image=image, image_path=None)
            self.draw(item, reconstruction).save(filename)

    def draw(self, item: ImageItem, reconstruction: torch.Tensor | None) -> Image.Image:
        """Draw input, reconstruction and the visualiser's other panels side by side.

        Args:
            item: Image with its predictions.
            reconstruction: Shape ``(3, H, W)``, values in [0, 1]; ``None`` leaves its panel out.
        """
        stock = self.visualize(item)
        assert isinstance(stock, Image.Image)  # noqa: S101  (one item makes one row of panels, the input first)
        if reconstruction is None:
            return stock
        width, height = self.field_size
        panel = visualize_image(reconstruction).resize(self.field_size)
        text_config = dict(self.text_config)
        if text_config.pop("enable", True):
            panel = add_text_to_image(panel, "Reconstruction", **text_config)
        panels = [stock.crop((left, 0, left + width, height)) for left in range(0, stock.width, width)]
        panels.insert(1, panel)
        return create_image_grid(panels, nrow=len(panels))

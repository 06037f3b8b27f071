# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a reconstructing model sees."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.models import AnomalibModule
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import add_text_to_image, create_image_grid, visualize_image
from lightning.pytorch import Trainer
from PIL import Image

from ganomaly_plugin.image_reader import read_image
from ganomaly_plugin.models.components.pre_processor import WHITE_LEVEL


class ReconstructionVisualizer(ImageVisualizer):
    """anomalib's image visualiser with the reconstruction beside the input.

    It takes reconstructions from the attribute ``reconstruction`` of scored batches, ``(B, 3, H, W)`` in [0, 1]; where
    there are none, it is anomalib's. All arguments are those of anomalib's ``ImageVisualizer``.
    """

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: ImageBatch, batch: ImageBatch, *args: Any
    ) -> None:
        """Save one picture per image of the batch."""
        reconstructions: torch.Tensor | None = getattr(outputs, "reconstruction", None)
        if reconstructions is None:
            super().on_test_batch_end(trainer, pl_module, outputs, batch, *args)
            return
        self.output_dir = self.output_dir or Path(trainer.default_root_dir) / "images"
        datamodule: Any = getattr(trainer, "datamodule", None)
        for item, reconstruction in zip(batch, reconstructions.cpu(), strict=True):
            filename = generate_output_filename(
                input_path=item.image_path or "",
                output_path=self.output_dir,
                dataset_name=getattr(datamodule, "name", None),
                category=getattr(datamodule, "category", None),
            )
            gain = WHITE_LEVEL / pl_module.hparams["white_level"]
            if item.image_path and gain > 1:  # The file looks nearly black.
                image = (torch.as_tensor(read_image(item.image_path, as_tensor=True)) * gain).clamp(max=1)
                item = replace(item, image=image, image_path=None)
            self.draw(item, reconstruction).save(filename)

    def draw(self, item: ImageItem, reconstruction: torch.Tensor) -> Image.Image:
        """Draw input, reconstruction and the visualiser's other panels side by side.

        Args:
            item: Image with its predictions.
            reconstruction: Shape ``(3, H, W)``, values in [0, 1].
        """
        width, height = self.field_size
        panel = visualize_image(reconstruction).resize(self.field_size)
        text_config = dict(self.text_config)
        if text_config.pop("enable", True):
            panel = add_text_to_image(panel, "Reconstruction", **text_config)
        stock = self.visualize(item)
        assert isinstance(stock, Image.Image)  # noqa: S101  (one item makes one row of panels, the input first)
        panels = [stock.crop((left, 0, left + width, height)) for left in range(0, stock.width, width)]
        panels.insert(1, panel)
        return create_image_grid(panels, nrow=len(panels))

# SPDX-License-Identifier: Apache-2.0
"""Train one step on eight images with one process or two, and keep the weights.

Usage: ddp_step.py DEVICES OUTPUT. The trainer starts this script again for the second process.
"""

import sys

import torch
from anomalib.data import ImageBatch, ImageItem
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from ganomaly_plugin.models.ganomaly import GANomaly


class FrozenStatistics(Callback):
    """Batch statistics of half a batch differ from the whole's by design, so the running ones serve both."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Put the batch-norm layers into evaluation mode."""
        for layer in pl_module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()


def main(devices: int, output: str) -> None:
    """Run the step."""
    seed_everything(11)
    items = [ImageItem(image=torch.rand(3, 32, 32) * 2 - 1, gt_label=torch.tensor(0)) for _ in range(8)]
    loader = DataLoader(items, batch_size=8 // devices, collate_fn=ImageBatch.collate)
    model = GANomaly(image_size=32, n_features=4, pre_processor=False, evaluator=False, visualizer=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[FrozenStatistics()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train_dataloaders=loader)
    if trainer.is_global_zero:
        torch.save({"before": before, "after": dict(model.named_parameters())}, output)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

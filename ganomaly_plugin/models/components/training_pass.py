# SPDX-License-Identifier: Apache-2.0
"""A pass over the training images besides those that train."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor


def training_batches(module: AnomalibModule) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield names and pre-processed images ``(B, 3, H, W)`` of an epoch's training batches, on the model's device.

    Shuffling for it changes none of the random numbers that the training sees next.

    Args:
        module: Model in training. Batches without names have none.
    """
    trainer: Any = module.trainer
    with torch.random.fork_rng():
        loader = iter(islice(trainer.train_dataloader, int(trainer.num_training_batches)))
    while True:
        with torch.random.fork_rng():
            batch = next(loader, None)
        if batch is None:
            return
        batch = trainer.strategy.batch_to_device(batch)
        if isinstance(module.pre_processor, PreProcessor):
            module.pre_processor.on_train_batch_start(trainer, module, batch, 0)
        yield list(batch.image_path or []), batch.image

# SPDX-License-Identifier: Apache-2.0
"""A pass over the training images besides those that train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn


def training_batches(module: AnomalibModule) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield names and pre-processed images ``(B, 3, H, W)`` of an epoch's training batches, on the model's device.

    Shuffling for it changes none of the random numbers that the training sees next. A bar in the terminal shows where
    the pass is.

    Args:
        module: Model in training. Batches without names have none.
    """
    trainer: Any = module.trainer
    with torch.random.fork_rng():
        loader = iter(islice(trainer.train_dataloader, int(trainer.num_training_batches)))
    with _shown(trainer) as advance:
        while True:
            with torch.random.fork_rng():
                batch = next(loader, None)
            if batch is None:
                return
            batch = trainer.strategy.batch_to_device(batch)
            if isinstance(module.pre_processor, PreProcessor):
                module.pre_processor.on_train_batch_start(trainer, module, batch, 0)
            yield list(batch.image_path or []), batch.image
            advance()


@contextmanager
def _shown(trainer: Any) -> Iterator[Callable[[], None]]:
    """Show a pass among the trainer's own bars, since a terminal takes no second display beside them."""
    bar = trainer.progress_bar_callback
    progress = bar.progress if isinstance(bar, RichProgressBar) else None
    if progress is None:
        yield lambda: None
        return
    task = progress.add_task("Looking at training images", total=trainer.num_training_batches)

    def advance() -> None:
        progress.advance(task)
        progress.refresh()

    try:
        yield advance
    finally:
        progress.remove_task(task)


class MeasureTrainingImages(Callback):
    """Lets a model measure the training images once an epoch, before its validation and with the latest weights.

    The model has a method ``measure_training_images``, which is called in evaluation mode and without gradients.
    """

    def __init__(self) -> None:
        self._measured_step: int | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before a validation in a training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where no validation has seen the latest weights."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: Any) -> None:
        if self._measured_step == trainer.global_step:
            return
        was_training = pl_module.model.training
        pl_module.model.eval()
        with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            pl_module.measure_training_images()
        pl_module.model.train(was_training)
        self._measured_step = trainer.global_step

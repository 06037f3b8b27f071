# SPDX-License-Identifier: Apache-2.0
"""A look at the range of the training images, where a wrong bit depth shows."""

import logging
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.models import AnomalibModule
from lightning.pytorch import Callback, Trainer

logger = logging.getLogger(__name__)

LITTLE = 1 / 8
"""Fraction of the range below which all pixels of a set are suspicious: a camera of 12 bits uses a sixteenth of 16."""


class ValueRange(Callback):
    """Warns after the first epoch of a training whose images use little of their range, or exceed it.

    Images are those that the pre-processor made, in [-1, 1].

    Args:
        white_level: Value of white in files of 16 bits that the pre-processor was made for.
    """

    def __init__(self, white_level: int) -> None:
        self.white_level = white_level
        self._brightest: torch.Tensor | None = None
        self._is_known = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: object, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Note the brightest pixel."""
        del trainer, pl_module, outputs, batch_idx
        if not self._is_known:
            images: Any = batch.image
            brightest: torch.Tensor = images.detach().amax()
            self._brightest = brightest if self._brightest is None else torch.maximum(self._brightest, brightest)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Warn once."""
        del trainer, pl_module
        if self._is_known or self._brightest is None:
            return
        self._is_known = True
        used = (float(self._brightest) + 1) / 2
        if used < LITTLE:
            logger.warning(
                "The brightest pixel of the training images, resized, has %.2g %% of the value of white, so the model "
                "sees them nearly black. If a camera of 10, 12 or 14 bits wrote files of 16, build the model with "
                "white_level=1023, 4095 or 16383.",
                used * 100,
            )
        elif used > 1 + LITTLE:
            logger.warning(
                "The brightest pixel of the training images is %.2g times as bright as white by white_level=%d: choose "
                "a larger one, and none where there are images of 8 bits.",
                used,
                self.white_level,
            )

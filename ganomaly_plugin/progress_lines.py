# SPDX-License-Identifier: Apache-2.0
"""What a trainer is at, in words, for where no terminal shows its bars."""

import atexit
import sys
import threading
import time
from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

SECONDS_BETWEEN_LINES = 5.0
"""How often a command says what it is at."""


class TrainerProgress(Callback):
    """Tells after each batch what the trainer is at."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Take what the trainer is at; the first word names its stage."""

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        """Name epoch and batch."""
        epochs = f" of {trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self.say(f"epoch {trainer.current_epoch + 1}{epochs}, batch {batch_idx + 1} of {trainer.num_training_batches}")

    def on_test_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Name the batch."""
        self.say(f"test, batch {batch_idx + 1} of {trainer.num_test_batches[0]}")

    def on_predict_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Name the batch."""
        self.say(f"predict, batch {batch_idx + 1} of {trainer.num_predict_batches[0]}")


class CommandProgress(TrainerProgress):
    """Keeps what a command is at.

    Args:
        text: What it is at first.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def say(self, text: str) -> None:
        """Keep the text."""
        self.text = text


def print_regularly(progress: CommandProgress) -> None:
    """Print what a command is at on standard error until Python ends, also while a single step of it takes long."""
    start = time.monotonic()
    closed = threading.Event()

    def work() -> None:
        while not closed.wait(SECONDS_BETWEEN_LINES):
            print(f"{time.monotonic() - start:.0f} s: {progress.text}", file=sys.stderr, flush=True)  # noqa: T201

    def close() -> None:
        closed.set()
        thread.join()  # Python's end aborts where a thread holds standard error.

    thread = threading.Thread(target=work, name="ganomaly-progress", daemon=True)
    thread.start()
    atexit.register(close)

# SPDX-License-Identifier: Apache-2.0
"""What anomalib's command prints: each message once, and no warning that only another package's author can act on."""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

WARNINGS: tuple[tuple[type[Warning], str, str], ...] = (
    # Category, where it comes from, and how it starts. All of anomalib's and Lightning's own code.
    (FutureWarning, r"timm\.models\.layers", "Importing from timm.models.layers is deprecated"),
    (FutureWarning, r"anomalib\.models\.image\.dinomaly", "The anomalib.models.components.dinov2 package"),
    (FutureWarning, r"lightning\.pytorch\.utilities\._pytree", "`isinstance"),
    (UserWarning, r"torchmetrics\.utilities\.prints", "The ``compute`` method of metric"),
)
"""Warnings that users of the command cannot act on. Without masks, for one, pixel metrics have nothing to compute."""

MESSAGES = ("The following callbacks returned in `LightningModule.configure_callbacks`", "💡 Tip: ")
"""Starts of messages of Lightning that say nothing of a user's training."""


def announce() -> None:
    """Say in a terminal what the command is at, since anomalib takes ten seconds to load."""
    if sys.stderr.isatty() and Path(sys.argv[0]).name == "anomalib":
        sys.stderr.write("Loading anomalib ...\n")


def say_what_it_is_at() -> None:
    """Let the command print lines where bars cannot be seen, since its output goes to a file or another program."""
    from anomalib import callbacks
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from ganomaly_plugin import progress_lines

    stock: Callable[..., list] = callbacks.get_callbacks

    @wraps(stock)
    def get_callbacks(config: Any) -> list:
        found = stock(config)
        is_command = Path(sys.argv[0]).name == "anomalib"
        if is_command and not sys.stdout.isatty() and getattr(rank_zero_only, "rank", 0) == 0:
            own = progress_lines.CommandProgress(sys.argv[1])
            progress_lines.print_regularly(own)
            found.append(own)
        return found

    callbacks.get_callbacks = get_callbacks


def ignore_warnings() -> None:
    """Ignore these warnings, unless the interpreter was told what to do with warnings (``python -W``)."""
    if sys.warnoptions:
        return
    for category, module, start in WARNINGS:
        warnings.filterwarnings("ignore", start, category, module)


def print_once(command: ModuleType) -> None:
    """Let the command's logging have one handler, and leave those messages out.

    Args:
        command: ``anomalib.cli.cli``, which gives the root logger a plain one and a coloured one.
    """
    stock: Callable[..., None] = command.configure_logger

    @wraps(stock)
    def configure_logger(level: int | str = logging.INFO) -> None:
        from lightning.pytorch.utilities.rank_zero import rank_zero_module

        stock(level)
        rank_zero_module.log.addFilter(lambda record: not record.getMessage().startswith(MESSAGES))
        root = logging.getLogger()
        for handler in root.handlers[:-1]:
            if type(handler) is logging.StreamHandler:
                root.removeHandler(handler)

    command.configure_logger = configure_logger  # type: ignore[attr-defined]

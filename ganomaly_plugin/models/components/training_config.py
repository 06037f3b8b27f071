# SPDX-License-Identifier: Apache-2.0
"""The configuration that the command line writes beside a training's results."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

OPTIMISATION = ("optimizer", "lr_scheduler")
"""Keys that ``export`` and ``predict`` refuse, even where they are null."""


class SaveTrainingConfig(SaveConfigCallback):
    """Takes the place of the command line's callback, and writes a configuration that all subcommands take.

    It is that of the training: subcommands that use the folder later leave it as it is.

    Args:
        stock: The command line's callback.

    Raises:
        ValueError: If the command line names an optimiser or a schedule of its learning rate, since ``train`` would
            ignore them and ``fit`` would break off.
    """

    def __init__(self, stock: SaveConfigCallback) -> None:
        config = stock.config.clone()
        given = [f"--{name}" for name in OPTIMISATION if config.pop(name, None) is not None]
        if given:
            msg = (
                f"{' and '.join(given)} would have no effect: the model has its own Adam, which takes --model.lr, "
                "--model.beta1 and --model.beta2. For another optimiser override configure_optimizers in a subclass."
            )
            raise ValueError(msg)
        super().__init__(stock.parser, config, stock.config_filename, stock.overwrite, stock.multifile)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration."""
        trains = trainer.state.fn == TrainerFn.FITTING
        written = Path(trainer.default_root_dir) / self.config_filename
        self.already_saved |= trainer.strategy.broadcast(not trains and written.exists())
        super().setup(trainer, pl_module, stage)

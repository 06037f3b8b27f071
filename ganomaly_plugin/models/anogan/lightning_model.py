# SPDX-License-Identifier: Apache-2.0
"""AnoGAN as an anomalib model."""

from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from ganomaly_plugin.models.components.detector_module import DetectorModule

from .torch_model import AnoGANModel


class AnoGAN(DetectorModule):
    """AnoGAN (Schlegl et al., 2017): a GAN of normal images, and a search at test time.

    The score of an image is its distance to the nearest image that the generator can make, in pixels and in the
    discriminator's features. The search takes hundreds of forward and backward passes, and so seconds an image; it
    cannot be exported. f-AnoGAN needs none.

    Logged per epoch: ``loss_discriminator`` and ``loss_generator`` in training, ``val_score`` and ``image_AUROC`` in
    validation, which searches as well: ``trainer.check_val_every_n_epoch`` makes it rarer.

    Args:
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        steps: Steps of the search.
        weight: Fraction of the discriminator's features in the score, in [0, 1].
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.
    """

    model: AnoGANModel
    can_be_exported = False

    def __init__(
        self, *, lr: float = 0.0002, beta1: float = 0.5, steps: int = 500, weight: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(lr=lr, beta1=beta1, **kwargs)
        space = self.build_space()
        self.model = AnoGANModel(space, self.build_pyramid(space), steps, weight)

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise each network's own loss."""
        return {"discriminator": losses["loss_discriminator"], "generator": losses["loss_generator"]}

    def on_test_start(self) -> None:
        """Show the progress of each search, if the trainer shows progress."""
        if self.trainer.progress_bar_callback is not None:
            self.model.track = partial(tqdm, desc="search", leave=False)

    on_predict_start = on_test_start

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to export.

        Raises:
            ValueError: Always.
        """
        del export_root, args, kwargs
        msg = (
            "AnoGAN cannot be exported: it searches for each image's code by gradient descent, which no static graph "
            "holds. Train FAnoGAN (f_anogan), whose encoder replaces the search."
        )
        raise ValueError(msg)

    to_torch = to_openvino = to_onnx

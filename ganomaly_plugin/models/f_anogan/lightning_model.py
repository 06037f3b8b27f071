# SPDX-License-Identifier: Apache-2.0
"""f-AnoGAN as an anomalib model."""

import logging
from typing import Any

import torch
from anomalib.data import ImageBatch
from lightning.pytorch.callbacks import Timer

from ganomaly_plugin.models.components.checks import check_at_least, check_fraction
from ganomaly_plugin.models.components.detector_module import DetectorModule

from .torch_model import FAnoGANModel

logger = logging.getLogger(__name__)


class FAnoGAN(DetectorModule):
    """f-AnoGAN (Schlegl et al., 2019): a Wasserstein GAN of normal images, and an encoder that inverts it.

    Where AnoGAN searches for the code whose generated image is nearest, an encoder has learnt to predict it. One
    training has two phases: first the GAN, whose critic may take several steps for each of the generator; then the
    encoder, with both networks fixed (the paper's "izi_f"). A training that stops in between resumes in its phase.
    DCGAN blocks replace the authors' residual ones, so that any size works and a CPU can train it, and one Adam their
    optimisers: Adam with 1e-4, and RMSprop with 5e-5 for the encoder.

    Logged per epoch: ``loss_critic``, ``gradient_penalty`` and ``loss_generator`` in the first phase, ``loss_encoder``
    in the second, ``val_score`` and ``image_AUROC`` in validation, which mean nothing before the second.

    Args:
        latent_vec_size: Length of the latent code.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        gan_fraction: Fraction of the training that the GAN gets, in [0, 1]; the encoder gets the rest. It is a fraction
            of the steps, or of ``trainer.max_time`` where that ends first.
        critic_steps: Steps of the critic for one of the generator. The authors take 5; short trainings cannot.
        penalty: Weight of the gradient penalty.
        kappa: Weight of the critic's features in the encoder's loss and in the score.
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.

    Attributes:
        gan_steps: Optimiser steps of the first phase, ``None`` before training and as long as only time limits it; kept
            in checkpoints.
    """

    model: FAnoGANModel
    default_epochs = 30

    def __init__(
        self,
        *,
        latent_vec_size: int = 128,
        beta1: float = 0.0,
        beta2: float = 0.9,
        gan_fraction: float = 0.5,
        critic_steps: int = 1,
        penalty: float = 10.0,
        kappa: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_vec_size=latent_vec_size, beta1=beta1, beta2=beta2, **kwargs)
        check_at_least(1, critic_steps=critic_steps)
        check_at_least(0, penalty=penalty)
        check_fraction(gan_fraction=gan_fraction)
        space = self.build_space()
        self.model = FAnoGANModel(space, self.build_pyramid(space), kappa)
        self.gan_steps: int | None = None

    @property
    def encodes(self) -> bool:
        """Whether the training is in its second phase."""
        return self.gan_steps is not None and self.global_step >= self.gan_steps

    def on_fit_start(self) -> None:
        """Fix the length of the first phase, unless the checkpoint that training resumes has.

        Raises:
            ValueError: If the training has no end.
        """
        super().on_fit_start()
        if self.trainer.ckpt_path is None or self.gan_steps is None:
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf") and self._timer is None:
                msg = (
                    "f-AnoGAN divides a training into two phases: set trainer.max_epochs, trainer.max_steps or "
                    "trainer.max_time."
                )
                raise ValueError(msg)
            self.gan_steps = None if steps == float("inf") else round(self.hparams["gan_fraction"] * steps)

    @property
    def _timer(self) -> Timer | None:
        """What ends the training after some time, if anything does."""
        timers = (callback for callback in self.trainer.callbacks if isinstance(callback, Timer))
        return next((timer for timer in timers if timer.time_remaining() is not None), None)

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        """Enter the second phase at step ``gan_steps``, or when the first has taken its fraction of the time."""
        del batch
        if not self.encodes and self._timer is not None and batch_idx % self.trainer.accumulate_grad_batches == 0:
            elapsed, remaining = self._timer.time_elapsed(), self._timer.time_remaining()
            assert remaining is not None  # noqa: S101  (or there were no timer)
            time_is_up = elapsed >= self.hparams["gan_fraction"] * (elapsed + remaining)
            if self.trainer.strategy.broadcast(time_is_up):
                self.gan_steps = self.global_step
        if self.global_step == self.gan_steps:
            logger.info("f-AnoGAN's encoder begins in epoch %d.", self.current_epoch)
            self.model.begin_encoding()

    def on_train_end(self) -> None:
        """Warn where the encoder was not trained, unless what ended was the search of a tuner, which has no phases."""
        if not self.encodes and (self.gan_steps is not None or self._timer is not None):
            logger.warning(
                "The training ended after %d steps, in its first phase, so the encoder is untrained and scores mean "
                "nothing: resume it, or set a smaller gan_fraction.",
                self.global_step,
            )

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the losses of this phase."""
        return self.model.encoder_losses(self.model.space(images)) if self.encodes else super().losses(images)

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise the critic's loss and, at its turn, the generator's; in the second phase the encoder's."""
        if self.encodes:
            return {"encoder": losses["loss_encoder"]}
        objectives = {"critic": losses["loss_critic"] + self.hparams["penalty"] * losses["gradient_penalty"]}
        if (self.global_step + 1) % self.hparams["critic_steps"] == 0:
            objectives["generator"] = losses["loss_generator"]
        return objectives

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the second phase begins."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["gan_steps"] = self.gan_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore where the second phase begins."""
        super().on_load_checkpoint(checkpoint)
        self.gan_steps = checkpoint["gan_steps"]

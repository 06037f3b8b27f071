# SPDX-License-Identifier: Apache-2.0
"""f-AnoGAN as an anomalib model."""

import logging
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import nn

from ganomaly_plugin.models.components.adversarial import RoutedGradients
from ganomaly_plugin.models.components.checks import check_adam, check_at_least, check_share
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.components.detector import OneClassDetector, to_size

from .loss import critic_loss, generator_loss, gradient_penalty
from .torch_model import FAnoGANModel

logger = logging.getLogger(__name__)


class FAnoGAN(RoutedGradients, OneClassDetector, AnomalibModule):  # type: ignore[misc]  # Lightning's bases differ
    """f-AnoGAN (Schlegl et al., 2019): a Wasserstein GAN of normal images, and an encoder that inverts it.

    Where AnoGAN searches for the code whose generated image is nearest, an encoder has learnt to name it. One training
    has two phases: first the GAN, whose critic may take several steps for each of the generator; then the encoder, with
    both networks fixed (the paper's "izi_f"). A training that stops in between resumes in its phase. DCGAN blocks take
    the place of the authors' residual ones, so that any size works and a CPU can train it.

    Logged per epoch: ``loss_critic``, ``gradient_penalty`` and ``loss_generator`` in the first phase, ``loss_encoder``
    in the second, ``val_score`` and ``image_AUROC`` in validation, which mean little before the second.

    Args:
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        lr: Learning rate of Adam. The authors take 1e-4, and RMSprop with 5e-5 for the encoder; this one serves
            trainings of minutes.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        max_features: Upper bound on the channels of any layer, ``None`` for unbounded doubling.
        gan_share: Share of the training that the GAN gets, in [0, 1]; the encoder gets the rest.
        critic_steps: Steps of the critic for one of the generator. The authors take 5; short trainings cannot.
        penalty: Weight of the gradient penalty.
        kappa: Weight of the critic's features in the encoder's loss and in the score.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        pre_processor: Pre-processor, ``True`` for resizing and scaling to [-1, 1], ``False`` for none.
        post_processor: Post-processor, ``True`` for the threshold-ratio one, ``False`` for none.
        evaluator: Evaluator, ``True`` for AUROC, average precision and F1, ``False`` for none.
        visualizer: Visualiser, ``True`` for pictures with the reconstruction, ``False`` for none.

    Attributes:
        gan_steps: Optimiser steps of the first phase, ``None`` before training; kept in checkpoints.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    architecture = (*OneClassDetector.architecture, "n_features", "latent_vec_size", "max_features")

    def __init__(
        self,
        n_features: int = 32,
        latent_vec_size: int = 128,
        lr: float = 0.001,
        beta1: float = 0.0,
        beta2: float = 0.9,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        max_features: int | None = 512,
        gan_share: float = 0.5,
        critic_steps: int = 1,
        penalty: float = 10.0,
        kappa: float = 1.0,
        map_sigma: float = 2.0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        image_size = size = to_size(image_size)  # Keeps the argument's name, by which checkpoints store it.
        check_adam(lr, beta1, beta2)
        check_at_least(1, critic_steps=critic_steps)
        check_at_least(0, penalty=penalty)
        check_share(gan_share=gan_share)
        pyramid = Pyramid(size, input_channels, n_features, latent_vec_size, max_features)
        model = FAnoGANModel(pyramid, kappa, map_sigma)
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.check_input_size(size)
        self.model: FAnoGANModel = model
        self.lr = lr
        self.betas = (beta1, beta2)
        self.gan_share = gan_share
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.gan_steps: int | None = None

    def networks(self) -> tuple[nn.Module, ...]:
        """Return critic, generator and encoder."""
        networks = self.model.networks
        return networks.critic, networks.generator, networks.encoder

    def networks_in_step(self) -> tuple[nn.Module, ...]:
        """Return the encoder in the second phase, in the first the critic and, at its turn, the generator."""
        critic, generator, encoder = self.networks()
        if self.encodes:
            return (encoder,)
        return (critic, generator) if (self.global_step + 1) % self.critic_steps == 0 else (critic,)

    @property
    def encodes(self) -> bool:
        """Whether the training is in its second phase."""
        return self.gan_steps is not None and self.global_step >= self.gan_steps

    def on_fit_start(self) -> None:
        """Settle how long the first phase lasts, unless a checkpoint has.

        Raises:
            ValueError: If the training has no end.
        """
        super().on_fit_start()
        if self.gan_steps is None:
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                msg = "f-AnoGAN divides a training into two phases: set trainer.max_epochs or trainer.max_steps."
                raise ValueError(msg)
            self.gan_steps = round(self.gan_share * steps)

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        """Enter the second phase when it is time."""
        del batch, batch_idx
        if self.global_step == self.gan_steps:
            logger.info("f-AnoGAN's encoder begins in epoch %d.", self.current_epoch)
            self.model.begin_encoding()

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        """Return the losses of the networks in this step.

        Raises:
            ValueError: If one is not finite; the message says which, where and what to try.
        """
        images: Any = batch.image
        if self.encodes:
            loss = self.model.encode(images).mean()
            self.log_losses({"loss_encoder": loss}, batch, batch_idx)
            return loss.unsqueeze(0)
        verdicts = self.model.judge(images)
        parts = {
            "loss_critic": critic_loss(verdicts.real, verdicts.generated),
            "gradient_penalty": gradient_penalty(
                lambda images: self.model.networks.critic(images)[0], verdicts.between
            ),
            "loss_generator": generator_loss(verdicts.generated),
        }
        self.log_losses(parts, batch, batch_idx)
        losses = [parts["loss_critic"] + self.penalty * parts["gradient_penalty"], parts["loss_generator"]]
        return torch.stack(losses[: len(self.networks_in_step())])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the second phase begins."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["gan_steps"] = self.gan_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore where the second phase begins."""
        super().on_load_checkpoint(checkpoint)
        self.gan_steps = checkpoint["gan_steps"]

# SPDX-License-Identifier: Apache-2.0
"""GANomaly as an anomalib model: the training step, its optimiser and its defaults."""

import logging
from itertools import islice
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn

from ganomaly_plugin.models.components.adversarial import DiscriminatorRestart, RoutedGradients
from ganomaly_plugin.models.components.checks import check_adam, check_at_least
from ganomaly_plugin.models.components.dcgan import Discriminator, Pyramid, initialise_weights
from ganomaly_plugin.models.components.detector import OneClassDetector, to_size
from ganomaly_plugin.models.components.scores import whitening_precision

from .loss import (
    ADVERSARIAL_FORMS,
    AdversarialForm,
    discriminator_loss,
    feature_matching_loss,
    fooling_loss,
    latent_loss,
    reconstruction_loss,
)
from .torch_model import GANomalyModel, Score

logger = logging.getLogger(__name__)


class GANomaly(DiscriminatorRestart, RoutedGradients, OneClassDetector, AnomalibModule):  # type: ignore[misc]  # two of Lightning's bases differ
    """GANomaly (Akcay, Atapour-Abarghouei, Breckon, ACCV 2018).

    A generator encodes an image, rebuilds it from the code and encodes it again; trained on normal images only, its two
    codes drift apart where an image is anomalous. A discriminator keeps the rebuilding honest during training.

    Both networks take their gradients from one pass each over images and reconstructions, and one Adam steps both, so
    every trainer flag (precision, gradient accumulation and clipping, strategies) works as for any other model.

    Logged per epoch: ``loss_adversarial``, ``loss_reconstruction``, ``loss_latent`` and ``loss_discriminator`` in
    training; ``val_score``, the mean raw score of the normal validation images (monitor with mode ``min``), and
    ``image_AUROC`` (mode ``max``; NaN unless validation holds both classes) in validation.

    Args:
        n_features: Channels after the first convolution of each network.
        latent_vec_size: Length of the latent code.
        extra_layers: Number of additional 3x3 convolutions in each network.
        add_final_conv_layer: If ``False``, the latent code is the encoder's last feature map and ``latent_vec_size``
            plays no part.
        wadv: Weight of the adversarial loss.
        wcon: Weight of the reconstruction loss.
        wenc: Weight of the latent loss.
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        max_features: Upper bound on the channels of any layer, ``None`` for the paper's unbounded doubling. The default
            leaves the paper's sizes, 32 and 64 pixels, as they are.
        adversarial: ``feature_matching`` (the paper) or ``bce`` (its code in 2018).
        score: ``latent_l1`` (the paper), ``latent_l2`` (its code), ``latent_relative`` (as a share of the code's
            length), ``latent_whitened`` (in units of what is usual among training images, which one more pass over
            them measures after each epoch) or ``reconstruction`` (the map's mean).
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        average_weights: Whether to infer with a running average of the generator's weights, which steadies the scores
            from epoch to epoch.
        batch_size: Not used: the datamodule sets it. Accepted so that configurations of anomalib's Ganomaly load.
        pre_processor: Pre-processor, ``True`` for resizing and scaling to [-1, 1], ``False`` for none.
        post_processor: Post-processor, ``True`` for the threshold-ratio one, ``False`` for none.
        evaluator: Evaluator, ``True`` for AUROC, average precision and F1, ``False`` for none.
        visualizer: Visualiser, ``True`` for pictures with the reconstruction, ``False`` for none.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.

    Example:
        >>> model = GANomaly(image_size=32, input_channels=1)
        >>> sum(parameter.numel() for parameter in model.model.generator.parameters())
        3200384
    """

    training_only = ("discriminator",)
    architecture = (
        *OneClassDetector.architecture,
        "n_features",
        "latent_vec_size",
        "extra_layers",
        "add_final_conv_layer",
        "max_features",
        "average_weights",
    )

    def __init__(
        self,
        n_features: int = 64,
        latent_vec_size: int = 100,
        extra_layers: int = 0,
        add_final_conv_layer: bool = True,
        wadv: float = 1,
        wcon: float = 50,
        wenc: float = 1,
        lr: float = 0.0002,
        beta1: float = 0.5,
        beta2: float = 0.999,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        max_features: int | None = 512,
        adversarial: AdversarialForm = "feature_matching",
        score: Score = "latent_l1",
        map_sigma: float = 2.0,
        average_weights: bool = True,
        batch_size: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        # Keeps the argument's name, by which checkpoints store it.
        image_size = size = to_size(image_size)
        check_at_least(0, wadv=wadv, wcon=wcon, wenc=wenc)
        check_adam(lr, beta1, beta2)
        if adversarial not in ADVERSARIAL_FORMS:
            msg = f"adversarial is {adversarial!r}; choose one of {', '.join(ADVERSARIAL_FORMS)}."
            raise ValueError(msg)
        pyramid = Pyramid(
            size, input_channels, n_features, latent_vec_size, max_features, extra_layers, add_final_conv_layer
        )
        model = GANomalyModel(pyramid, score, map_sigma, average_weights)
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.check_input_size(size)
        if batch_size is not None:
            logger.warning(
                "GANomaly's batch_size=%s has no effect: set data.train_batch_size of the datamodule.", batch_size
            )
        self.model: GANomalyModel = model
        self.discriminator = Discriminator(pyramid)
        initialise_weights(self.discriminator)
        self.discriminator.to(memory_format=torch.channels_last)
        self.wadv = wadv
        self.wcon = wcon
        self.wenc = wenc
        self.lr = lr
        self.betas = (beta1, beta2)
        self.adversarial = adversarial
        self._measured_step: int | None = None

    def networks(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Return generator and discriminator."""
        return self.model.generator, self.discriminator

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Compute both networks' losses from one generator pass and two discriminator passes.

        Returns:
            ``loss``, the losses of generator and discriminator as a vector of two, and
            ``discriminator_loss``.

        Raises:
            ValueError: If a loss is not finite; the message says which, where and what to try.
        """
        images, reconstructions, latent, latent_of_reconstruction = self.model(batch.image)
        real_logits, real_features = self.discriminator(images)
        fake_logits, fake_features = self.discriminator(reconstructions)
        losses = {
            "loss_adversarial": feature_matching_loss(real_features, fake_features)
            if self.adversarial == "feature_matching"
            else fooling_loss(fake_logits),
            "loss_reconstruction": reconstruction_loss(images, reconstructions),
            "loss_latent": latent_loss(latent, latent_of_reconstruction),
            "loss_discriminator": discriminator_loss(real_logits, fake_logits),
        }
        self.log_losses(losses, batch, batch_idx)
        generator_loss = (
            self.wadv * losses["loss_adversarial"]
            + self.wcon * losses["loss_reconstruction"]
            + self.wenc * losses["loss_latent"]
        )
        return {
            "loss": torch.stack([generator_loss, losses["loss_discriminator"]]),
            "discriminator_loss": losses["loss_discriminator"].detach(),
        }

    def on_validation_start(self) -> None:
        """Measure the training images' latent differences, if the score is in their units."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._measure_differences()

    def on_train_epoch_end(self) -> None:
        """Measure them as well where no validation has seen the latest weights."""
        if self._measured_step != self.global_step:
            self._measure_differences()

    def _measure_differences(self) -> None:
        if self.model.score != "latent_whitened":
            return
        was_training = self.model.training
        self.model.eval()
        differences = []
        # Shuffling here must not change the random numbers that the training sees next.
        with torch.random.fork_rng(), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            loader: Any = self.trainer.train_dataloader
            for batch in islice(loader, int(self.trainer.num_training_batches)):
                batch = self.trainer.strategy.batch_to_device(batch)
                if isinstance(self.pre_processor, PreProcessor):
                    self.pre_processor.on_train_batch_start(self.trainer, self, batch, 0)
                latent, latent_of_reconstruction = self.model.latent_codes(batch.image)
                differences.append((latent - latent_of_reconstruction).flatten(1))
        self.model.train(was_training)
        gathered: Any = self.all_gather(torch.cat(differences))
        self.model.precision.copy_(whitening_precision(gathered.flatten(end_dim=-2)))
        self._measured_step = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse as well a checkpoint without what the score needs.

        Raises:
            ValueError: If the checkpoint does not fit; the message says what it holds and what was expected.
        """
        super().on_load_checkpoint(checkpoint)
        precision = checkpoint["state_dict"].get("model.precision")
        if self.model.score == "latent_whitened" and precision.equal(torch.eye(len(precision))):
            msg = (
                "The checkpoint does not fit this model: it was trained for another score than latent_whitened, so it "
                "knows nothing to whiten with. Build the model as it was trained."
            )
            raise ValueError(msg)

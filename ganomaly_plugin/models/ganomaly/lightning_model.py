# SPDX-License-Identifier: Apache-2.0
"""GANomaly as an anomalib model: the training step, its optimiser and its defaults."""

import logging
from itertools import islice
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC as PixelAUROC
from anomalib.metrics import Evaluator, F1Score
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from ganomaly_plugin.models.components.dcgan import Discriminator, initialise_weights
from ganomaly_plugin.models.components.export import SelfDescribingExport
from ganomaly_plugin.models.components.metrics import AUROC, AveragePrecision
from ganomaly_plugin.models.components.post_processor import OneClassPostProcessor
from ganomaly_plugin.models.components.pre_processor import AntialiasedPreProcessor
from ganomaly_plugin.models.components.scores import whitening_precision
from ganomaly_plugin.models.components.visualizer import ReconstructionVisualizer

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

COLLAPSE_LOSS = 1e-5
"""Discriminator loss below which the discriminator is initialised anew, as GANomaly's code does."""

CHECK_INTERVAL = 10
"""Batches between two looks at the losses on an accelerator, where each look waits for the device."""

ARCHITECTURE = (
    "image_size",
    "input_channels",
    "n_features",
    "latent_vec_size",
    "extra_layers",
    "add_final_conv_layer",
    "max_features",
    "average_weights",
)
"""Hyper-parameters that a checkpoint and the model it is loaded into must share."""


class GANomaly(SelfDescribingExport, AnomalibModule):  # type: ignore[misc]  # two of Lightning's bases differ
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
        image_size = size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        _check_training_arguments(wadv, wcon, wenc, lr, beta1, beta2, adversarial)
        model = GANomalyModel(
            size,
            input_channels,
            n_features,
            latent_vec_size,
            extra_layers,
            max_features,
            add_final_conv_layer,
            score,
            map_sigma,
            average_weights,
        )
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size is not None and tuple(self.input_size) != size:
            msg = (
                f"The pre-processor makes images of {tuple(self.input_size)} pixels, but image_size is {size}: "
                "give both the same size."
            )
            raise ValueError(msg)
        if batch_size is not None:
            logger.warning(
                "GANomaly's batch_size=%s has no effect: set data.train_batch_size of the datamodule.", batch_size
            )
        self.model: GANomalyModel = model
        self.discriminator = Discriminator(size, input_channels, n_features, extra_layers, max_features)
        initialise_weights(self.discriminator)
        self.discriminator.to(memory_format=torch.channels_last)
        self.wadv = wadv
        self.wcon = wcon
        self.wenc = wenc
        self.lr = lr
        self.betas = (beta1, beta2)
        self.adversarial = adversarial
        self._rng_state: torch.Tensor | None = None
        self._measured_step: int | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one Adam over generator and discriminator.

        Both use the same settings and both take gradients from before either's update, so that one optimiser is two.
        """
        parameters = [*self.model.generator.parameters(), *self.discriminator.parameters()]
        # Elsewhere PyTorch's default is as fast, and fused steps exclude clipping under 16-bit mixed precision.
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=self.device.type == "cpu")

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Compute both networks' losses from one generator pass and two discriminator passes.

        Returns:
            ``loss``, the losses of generator and discriminator as a vector of two for :meth:`backward`, and
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
        if self._looks_at_losses(batch_idx):
            self._check_finite(losses, batch, batch_idx)
        self.log_dict(losses, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        generator_loss = (
            self.wadv * losses["loss_adversarial"]
            + self.wcon * losses["loss_reconstruction"]
            + self.wenc * losses["loss_latent"]
        )
        return {
            "loss": torch.stack([generator_loss, losses["loss_discriminator"]]),
            "discriminator_loss": losses["loss_discriminator"].detach(),
        }

    def backward(self, loss: torch.Tensor) -> None:
        """Send each network the gradient of its own loss, through the graph that both share.

        Args:
            loss: Losses of generator and discriminator, ``(2,)``.
        """
        loss[0].backward(inputs=list(self.model.generator.parameters()), retain_graph=True)
        loss[1].backward(inputs=list(self.discriminator.parameters()))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step both networks, then let the average follow."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_average()

    def on_train_batch_end(self, outputs: dict[str, torch.Tensor], batch: ImageBatch, batch_idx: int) -> None:
        """Initialise the discriminator anew once it tells real from fake without effort.

        Weights and batch-norm parameters are drawn anew; Adam's moments and running statistics stay, as in GANomaly's
        code.
        """
        del batch
        if not self._looks_at_losses(batch_idx):
            return
        loss = self.trainer.strategy.reduce(outputs["discriminator_loss"], reduce_op="mean")
        if loss < COLLAPSE_LOSS:
            logger.info("Discriminator loss %.1e in epoch %d: weights drawn anew.", loss, self.current_epoch)
            # The same draw on every process, and no change of the random numbers that follow.
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(self.global_step)
                initialise_weights(self.discriminator)

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

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:
        """Score one validation batch and log the mean raw score of its normal images."""
        del batch_idx
        scores: Any = self._score(batch).pred_score
        if batch.gt_label is not None and not batch.gt_label.all():
            normal_scores = scores[~batch.gt_label]
            self.log(
                "val_score",
                normal_scores.mean(),
                on_epoch=True,
                prog_bar=True,
                batch_size=len(normal_scores),
                sync_dist=True,
            )
        return batch

    def test_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:
        """Score one test batch."""
        del batch_idx
        return self._score(batch)

    def predict_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> ImageBatch:
        """Score one batch."""
        del batch_idx, dataloader_idx
        return self._score(batch)

    def _score(self, batch: ImageBatch) -> ImageBatch:
        """Add scores and maps to a batch, and ``raw_score``, which no post-processing touches.

        Raises:
            ValueError: If a score is not finite; the message names the images.
        """
        # The difference of two nearly equal codes would drown in the rounding of a 16-bit type.
        with torch.autocast(self.device.type, enabled=False):
            predictions = self.model(batch.image)
        finite = predictions.pred_score.isfinite()
        if not finite.all():
            msg = f"The score of {_names(batch, ~finite)} is not finite: check the pixels, or train the model anew."
            raise ValueError(msg)
        batch.raw_score = predictions.pred_score  # type: ignore[attr-defined]
        return batch.update(**predictions._asdict())

    def _looks_at_losses(self, batch_idx: int) -> bool:
        return self.device.type == "cpu" or batch_idx % CHECK_INTERVAL == 0

    def _check_finite(self, losses: dict[str, torch.Tensor], batch: ImageBatch, batch_idx: int) -> None:
        values = torch.stack(list(losses.values())).tolist()
        broken = {name: value for name, value in zip(losses, values, strict=True) if not abs(value) < float("inf")}
        if not broken:
            return
        images: Any = batch.image
        bad_pixels = ~images.isfinite().flatten(1).all(1)
        if bad_pixels.any():
            advice = f"The pixels of {_names(batch, bad_pixels)} are not finite: repair or remove them."
        else:
            advice = f"Try a learning rate below {self.lr}, trainer.gradient_clip_val: 1 or trainer.precision: 32-true."
        msg = f"Training diverged in epoch {self.current_epoch}, batch {batch_idx}: {broken}. {advice}"
        raise ValueError(msg)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or architecture before its weights are touched.

        Raises:
            ValueError: If the checkpoint does not fit; the message says what it holds and what was expected.
        """
        saved = checkpoint["hyper_parameters"]
        if "discriminator.classifier.weight" not in checkpoint["state_dict"]:
            kind = "anomalib's own Ganomaly" if "model.discriminator" in str(checkpoint["state_dict"].keys()) else "it"
            msg = (
                f"This is not a checkpoint of ganomaly_plugin.GANomaly: {kind} has other networks. Load it with the "
                "model that wrote it, or train GANomaly anew."
            )
            raise ValueError(msg)
        differing = [
            f"{name} is {saved[name]} in the checkpoint and {self.hparams[name]} in the model"
            for name in ARCHITECTURE
            if saved[name] != self.hparams[name]
        ]
        if self.model.score == "latent_whitened" and checkpoint["state_dict"]["model.precision"].equal(
            torch.eye(self.model.precision.shape[0])
        ):
            differing.append(
                "it was trained for another score than latent_whitened, so it knows nothing to whiten with"
            )
        if differing:
            msg = f"The checkpoint does not fit this model: {'; '.join(differing)}. Build the model as it was trained."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        self._rng_state = checkpoint["torch_rng_state"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers, so that a resumed training shuffles as an uninterrupted one."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["torch_rng_state"] = torch.get_rng_state()

    def on_fit_start(self) -> None:
        """Go on with the random numbers of the checkpoint, if training resumes from one."""
        super().on_fit_start()
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state.cpu())
            self._rng_state = None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No arguments: anomalib would let them win over the user's."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """One-class: trained on normal images only."""
        return LearningType.ONE_CLASS

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return a pre-processor that resizes to ``image_size`` (64x64 by default) and scales [0, 1] to [-1, 1]."""
        return AntialiasedPreProcessor(
            transform=Compose(
                [
                    Resize(image_size or (64, 64), antialias=True),
                    Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
                ]
            )
        )

    def configure_post_processor(self) -> PostProcessor:
        """Return the post-processor that maps raw scores to [0, 1) with 0.5 at the threshold."""
        return OneClassPostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return an evaluator with image AUROC in validation, and AUROC, average precision and F1 in test."""
        return Evaluator(
            val_metrics=[AUROC(fields=["raw_score", "gt_label"], prefix="image_")],
            test_metrics=[
                AUROC(fields=["raw_score", "gt_label"], prefix="image_"),
                AveragePrecision(fields=["raw_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                PixelAUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> Visualizer:
        """Return the visualiser that draws input, reconstruction, map and mask side by side."""
        return ReconstructionVisualizer()


def _check_training_arguments(
    wadv: float, wcon: float, wenc: float, lr: float, beta1: float, beta2: float, adversarial: str
) -> None:
    """Refuse what cannot be trained with."""
    for name, value in (("wadv", wadv), ("wcon", wcon), ("wenc", wenc)):
        if not value >= 0:
            msg = f"{name} is {value}; loss weights must be 0 or more."
            raise ValueError(msg)
    if not lr > 0:
        msg = f"lr is {lr}; the learning rate must be positive (GANomaly's is 0.0002)."
        raise ValueError(msg)
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            msg = f"{name} is {value}; Adam's decay rates lie in [0, 1)."
            raise ValueError(msg)
    if adversarial not in ADVERSARIAL_FORMS:
        msg = f"adversarial is {adversarial!r}; choose one of {', '.join(ADVERSARIAL_FORMS)}."
        raise ValueError(msg)


def _names(batch: ImageBatch, chosen: torch.Tensor) -> str:
    """Name the chosen images of a batch by their paths, or by their places where they have none."""
    paths = batch.image_path or [f"image {index} of the batch" for index in range(len(chosen))]
    return ", ".join(str(path) for path, choose in zip(paths, chosen.tolist(), strict=True) if choose)

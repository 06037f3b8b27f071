# SPDX-License-Identifier: Apache-2.0
"""GANomaly on backbone features as an anomalib model: its objective, and its pass over the training images."""

import logging
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch
from lightning.pytorch.core.optimizer import LightningOptimizer

from ganomaly_plugin.models.components.backbone import Backbone
from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.detector_module import DetectorModule
from ganomaly_plugin.models.components.feature_space import BackboneFeatures
from ganomaly_plugin.models.components.joint_training import weighted_sum
from ganomaly_plugin.models.components.training_pass import MeasureTrainingImages, training_batches

from .torch_model import Code, FeatureGANomalyModel, Score, Shape
from .training_features import TrainingFeatures

logger = logging.getLogger(__name__)

SCORING_BATCH = 64
"""Training images that are scored at once for the units of the latent score."""


class FeatureGANomaly(DetectorModule):
    """GANomaly on the features of a frozen, pretrained backbone, for defects on real parts.

    The idea is that of GANomaly (Akcay, Atapour-Abarghouei, Breckon, ACCV 2018), the input is not: a generator encodes
    and reconstructs backbone features instead of pixels, in units of what is usual at their place as in PaDiM (Defard
    et al., 2021), and predicts how much they vary in this image. What remains is the anomaly map.

    One pass over the training images measures what is usual. Without augmentations it also keeps the images' features,
    at the default settings 280 kB an image, so that the backbone sees every training image once. Reading images is what
    takes longest then, so several optimiser steps go with each batch that is read.

    Logged per epoch: ``loss_reconstruction`` and the losses of the networks that there are (``loss_latent``,
    ``loss_adversarial``, ``loss_discriminator``) in training, ``val_score`` and ``image_AUROC`` in validation.

    Args:
        backbone: Name of a timm model that has ``features_only``.
        strides: Pixels from place to place of the backbone's feature maps to take.
        layers: Feature maps to take instead: names of their modules in timm, or places among those that there are.
        pre_trained: Whether a training loads timm's weights, which comes to one download; checkpoints hold them.
        weights: Local file with the backbone's weights in timm's names, ``.safetensors`` or ``.pth``.
        rank: Fraction of directions that the covariance of a place keeps, in (0, 1]; the model's size follows it.
        neighbourhood: Side of the square of places that share a covariance; ``None`` for one covariance a level.
        code: ``spatial`` for one code a place, ``global`` for one an image.
        kernel_size: Side of the kernels of the generator's first and last convolution, odd.
        dropout: Fraction of the encoder's last features that training sets to zero.
        prediction_weight: Weight in [0, 1] of the generator's prediction against what is usual; 0 leaves PaDiM's score.
        predict_variance: Whether the generator predicts variances besides its reconstruction.
        score: ``residual`` (of the anomaly map), ``latent`` (the whitened difference of the codes), or their ``sum``.
        top_fraction: Fraction of the map's largest values whose mean is the residual's score; 0 for the maximum.
        wadv: Weight of the adversarial loss; 0 leaves the discriminator out.
        wcon: Weight of the reconstruction loss.
        wenc: Weight of the latent loss; 0 leaves the second encoder out.
        steps_per_batch: Optimiser steps for each batch that is read, each with kept features of images of its own, at
            least 1. Where augmentations change the images, there is one step a batch, which takes more epochs.
        average_weights: Whether to score with an exponential moving average (EMA) of the networks' weights.
        n_features: Channels after the first convolution of each network.
        max_features: Upper bound on the channels of inner layers, ``None`` for unbounded doubling.
        latent_vec_size: Channels of a code.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.

    Example:
        >>> model = FeatureGANomaly(image_size=64)
        >>> model.model.space.level_channels, model.model.space.size
        ([160, 112], (4, 4))
    """

    model: FeatureGANomalyModel
    architecture = (
        *DetectorModule.architecture,
        *("backbone", "strides", "layers", "rank", "neighbourhood", "code", "kernel_size", "average_weights"),
    )
    default_epochs = 3
    training_callbacks = (MeasureTrainingImages,)

    def __init__(
        self,
        *,
        backbone: str = "tf_efficientnet_lite0",
        strides: tuple[int, ...] = (8, 16),
        layers: tuple[str | int, ...] | None = None,
        pre_trained: bool = True,
        weights: str | Path | None = None,
        rank: float = 0.5,
        neighbourhood: int | None = 1,
        code: Code = "spatial",
        kernel_size: int = 1,
        dropout: float = 0.5,
        prediction_weight: float = 0.5,
        predict_variance: bool = True,
        score: Score = "residual",
        top_fraction: float = 0.0,
        wadv: float = 0,
        wcon: float = 1,
        wenc: float = 0,
        steps_per_batch: int = 10,
        average_weights: bool = True,
        n_features: int = 48,
        max_features: int | None = 96,
        latent_vec_size: int = 32,
        image_size: int | tuple[int, int] = 256,
        map_sigma: float = 7.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            n_features=n_features,
            max_features=max_features,
            latent_vec_size=latent_vec_size,
            image_size=image_size,
            map_sigma=map_sigma,
            **kwargs,
        )
        check_at_least(0, wadv=wadv, wcon=wcon, wenc=wenc)
        check_at_least(1, steps_per_batch=steps_per_batch)
        if kernel_size < 1 or kernel_size % 2 == 0:
            msg = f"kernel_size is {kernel_size}; it must be odd, such as 1 or 3."
            raise ValueError(msg)
        # Checkpoints and checks see one format.
        self.hparams["strides"] = tuple(strides)
        self.hparams["layers"] = None if layers is None else tuple(layers)
        self.hparams["weights"] = None if weights is None else str(weights)
        size, channels = self.hparams["image_size"], self.hparams["input_channels"]
        network = Backbone(backbone, size, self.hparams["strides"], self.hparams["layers"])
        space = BackboneFeatures(size, channels, map_sigma, network, rank, neighbourhood)
        self.check_input_size(space)
        shape = Shape(
            size=space.size,
            channels=space.channels,
            n_features=n_features,
            max_features=max_features,
            latent_vec_size=latent_vec_size,
            code=code,
            kernel_size=kernel_size,
            dropout=dropout,
        )
        self.model = FeatureGANomalyModel(
            space,
            shape,
            score=score,
            top_fraction=top_fraction,
            prediction_weight=prediction_weight,
            predict_variance=predict_variance,
            adversarial=wadv > 0,
            second_encoder=wenc > 0,
            average_weights=average_weights,
        )
        weighted = {"loss_adversarial": wadv, "loss_reconstruction": wcon, "loss_latent": wenc}
        self.loss_weights = {name: weight for name, weight in weighted.items() if weight > 0}
        self._training_features: TrainingFeatures | None = None
        self._names: list[str] = []
        self._loads_weights = pre_trained or weights is not None

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise GANomaly's weighted sum (eq. 4) in the generator, and what the other networks have a part in."""
        objectives = {"generator": weighted_sum(losses, self.loss_weights)}
        if "loss_latent" in losses:
            objectives["second_encoder"] = self.loss_weights["loss_latent"] * losses["loss_latent"]
        if "loss_discriminator" in losses:
            objectives["discriminator"] = losses["loss_discriminator"]
        return objectives

    def on_fit_start(self) -> None:
        """Load the backbone's weights, unless a checkpoint has brought them.

        Raises:
            ValueError: If they cannot be had; the message says where to put them.
        """
        super().on_fit_start()
        if self._loads_weights and not self.trained:
            weights = self.hparams["weights"]
            self.model.space.backbone.load_pretrained(None if weights is None else Path(weights))

    def on_train_start(self) -> None:
        """Measure what is usual at each place of the training images."""
        super().on_train_start()
        names: list[str] = []
        batches: list[list[torch.Tensor]] = []
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for paths, images in training_batches(self):
                names += paths or [f"image {len(names) + index}" for index in range(len(images))]
                batches.append([_in_16_bits(level) for level in self.model.space.features(images)])
        levels = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        names, levels = self._gather(names, levels)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        keep = datamodule is not None and datamodule.train_augmentations is None
        self._training_features = TrainingFeatures(self.model.space, names, levels, keep)

    def _gather(self, names: list[str], levels: list[torch.Tensor]) -> tuple[list[str], list[torch.Tensor]]:
        """Bring together what all processes have, each image once."""
        if self.trainer.world_size > 1:
            everywhere: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, names)
            names = [name for part in everywhere for name in part]
            gathered: Any = self.all_gather(levels)
            levels = [level.flatten(end_dim=1) for level in gathered]
        places = list({name: place for place, name in enumerate(names)}.values())
        return [names[place] for place in places], [level[places] for level in levels]

    def measure_training_images(self) -> None:
        """Measure the training images' scores, if the score is in their units."""
        if self.hparams["score"] == "residual":
            return
        targets = torch.cat([self._target(names, images) for names, images in training_batches(self)])
        everywhere: Any = self.all_gather(targets)
        self.model.measure_scores(everywhere.flatten(end_dim=-4).split(SCORING_BATCH))

    def on_train_end(self) -> None:
        """Free the training images' features."""
        super().on_train_end()
        self._training_features = None

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Compute the losses of all networks, as in :meth:`DetectorModule.training_step`."""
        self._names = list(batch.image_path or [])
        return super().training_step(batch, batch_idx)

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar losses of a step by name, for as many training images as ``(B, 3, H, W)`` holds.

        These images are taken themselves, unless features are kept.
        """
        kept = self._kept_features
        if kept is None:
            return self.model.losses(self._target(self._names, images))
        return self.model.losses(kept.draw(len(images), self.trainer.global_rank, self.trainer.world_size))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer | LightningOptimizer, *args: Any
    ) -> None:
        """Take all steps of a batch."""
        for _ in range(1 if self._kept_features is None else self.hparams["steps_per_batch"]):
            super().optimizer_step(epoch, batch_idx, optimizer, *args)
            optimizer.zero_grad()  # Lightning does not between steps of accumulated gradients.

    @property
    def _kept_features(self) -> TrainingFeatures | None:
        """The training images' features, if they are kept."""
        features = self._training_features
        return features if features is not None and features.kept else None

    def _target(self, names: list[str], images: torch.Tensor) -> torch.Tensor:
        """Return what the networks learn from training images; without names, what they score."""
        if self._training_features is None or not names:
            return self.model.space(images)
        return self._training_features.target(names, images)


def _in_16_bits(level: torch.Tensor) -> torch.Tensor:
    """Halve the memory of features, unless some are beyond the range of 16 bits; scores change in the fourth digit."""
    half = level.half()
    return half if half.isfinite().all() else level

# SPDX-License-Identifier: Apache-2.0
"""GANomaly as an anomalib model: its objective, and the statistics of its whitened score."""

import logging
from typing import Any, ClassVar

import torch

from ganomaly_plugin.models.components.checks import check_at_least
from ganomaly_plugin.models.components.detector_module import DetectorModule
from ganomaly_plugin.models.components.joint_training import ReinitialiseCollapsed, weighted_sum
from ganomaly_plugin.models.components.scores import whitening_matrix
from ganomaly_plugin.models.components.training_pass import MeasureTrainingImages, training_batches

from .torch_model import AdversarialLoss, GANomalyModel, Score

logger = logging.getLogger(__name__)


class GANomaly(DetectorModule):
    """GANomaly (Akcay, Atapour-Abarghouei, Breckon, ACCV 2018).

    A generator encodes an image, reconstructs it from the code and encodes the reconstruction; trained on normal images
    only, its two codes differ where an image is anomalous. A discriminator makes the reconstructions realistic during
    training.

    Both networks take their gradients from one pass each over images and reconstructions, and one Adam steps both, so
    every trainer flag (precision, gradient accumulation and clipping, strategies) works as for any other model.

    Logged per epoch: ``loss_adversarial``, ``loss_reconstruction``, ``loss_latent`` and ``loss_discriminator`` in
    training, ``val_score`` and ``image_AUROC`` in validation.

    Args:
        n_features: Channels after the first convolution of each network.
        extra_layers: Number of additional 3x3 convolutions in each network.
        add_final_conv_layer: If ``False``, the latent code is the encoder's last feature map, and ``latent_vec_size``
            is ignored.
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        wadv: Weight of the adversarial loss.
        wcon: Weight of the reconstruction loss.
        wenc: Weight of the latent loss.
        adversarial: ``feature_matching`` (the paper) or ``bce`` (its code in 2018).
        score: ``latent_l1`` (the paper), ``latent_l2`` (its code), ``latent_relative`` (as a fraction of the code's
            length), ``latent_whitened`` (in units of what is usual among training images, which one more pass over
            them measures after each epoch) or ``reconstruction`` (the mean error).
        average_weights: Whether to score with an exponential moving average (EMA) of the generator's weights, which
            makes the scores of consecutive epochs more alike.
        batch_size: Ignored: the datamodule sets it. Accepted so that configurations of anomalib's Ganomaly load.
        **kwargs: Arguments of :class:`~ganomaly_plugin.models.components.detector_module.DetectorModule`. The default
            of ``max_features`` leaves the paper's sizes, 32 and 64 pixels, as they are.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.

    Example:
        >>> model = GANomaly(image_size=32, input_channels=1)
        >>> sum(parameter.numel() for parameter in model.model.networks["generator"].parameters())
        3200384
    """

    model: GANomalyModel
    architecture = (*DetectorModule.architecture, "extra_layers", "add_final_conv_layer", "average_weights")
    training_callbacks = (ReinitialiseCollapsed, MeasureTrainingImages)
    renamed_weights: ClassVar = DetectorModule.renamed_weights | {
        "discriminator.": "model.networks.discriminator.",
        "model.generator.": "model.networks.generator.",
        "model.average.module.encoder": "model.average.module.generator.encoder",
        "model.average.module.decoder": "model.average.module.generator.decoder",
    }

    def __init__(
        self,
        *,
        n_features: int = 64,
        extra_layers: int = 0,
        add_final_conv_layer: bool = True,
        lr: float = 0.0002,
        beta1: float = 0.5,
        wadv: float = 1,
        wcon: float = 50,
        wenc: float = 1,
        adversarial: AdversarialLoss = "feature_matching",
        score: Score = "latent_l1",
        average_weights: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_features=n_features, lr=lr, beta1=beta1, **kwargs)
        check_at_least(0, wadv=wadv, wcon=wcon, wenc=wenc)
        if batch_size is not None:
            logger.warning("GANomaly ignores batch_size=%s: set data.train_batch_size of the datamodule.", batch_size)
        space = self.build_space()
        pyramid = self.build_pyramid(space, extra_layers=extra_layers, add_final_conv_layer=add_final_conv_layer)
        self.model = GANomalyModel(space, pyramid, adversarial, score, average_weights)
        self.loss_weights = {"loss_adversarial": wadv, "loss_reconstruction": wcon, "loss_latent": wenc}

    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Minimise the weighted sum of the paper (eq. 4) in the generator, and the discriminator's own loss."""
        generator_loss = weighted_sum(losses, self.loss_weights)
        return {"generator": generator_loss, "discriminator": losses["loss_discriminator"]}

    def measure_training_images(self) -> None:
        """Measure the training images' latent differences, if the score is whitened by them."""
        if self.hparams["score"] != "latent_whitened":
            return
        differences = [self.model.latent_difference(images) for _, images in training_batches(self)]
        gathered: Any = self.all_gather(torch.cat(differences))
        gathered = gathered.flatten(end_dim=-2)
        self.model.whitening.copy_(whitening_matrix(gathered.T @ gathered / len(gathered)))

    def _rename_weights(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Turn the precision matrix of version 0.1.0 into the equivalent whitening matrix as well."""
        state = super()._rename_weights(state)
        precision = state.pop("model.precision", None)
        if precision is not None:
            state["model.whitening"] = whitening_matrix(torch.linalg.inv(precision), ridge=0)
        return state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse as well a checkpoint without what the score needs.

        Raises:
            ValueError: If the checkpoint does not fit; the message says what it holds and what was expected.
        """
        super().on_load_checkpoint(checkpoint)
        whitening = checkpoint["state_dict"].get("model.whitening")
        if self.hparams["score"] == "latent_whitened" and whitening.equal(torch.eye(len(whitening))):
            msg = (
                "The checkpoint does not fit this model: it was trained for another score than latent_whitened, so it "
                "holds no statistics to whiten with. Build the model as it was trained."
            )
            raise ValueError(msg)

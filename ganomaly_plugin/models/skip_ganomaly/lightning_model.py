# SPDX-License-Identifier: Apache-2.0
"""Skip-GANomaly as an anomalib model."""

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.adversarial import (
    DiscriminatorRestart,
    RoutedGradients,
    discriminator_loss,
    generator_loss,
)
from ganomaly_plugin.models.components.checks import check_adam, check_at_least
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.components.detector import OneClassDetector, to_size

from .torch_model import SkipGANomalyModel


class SkipGANomaly(DiscriminatorRestart, RoutedGradients, OneClassDetector, AnomalibModule):  # type: ignore[misc]  # Lightning's bases differ
    """Skip-GANomaly (Akcay et al., 2019): GANomaly with a U-Net, and a discriminator's features for the latent code.

    Connections past the bottleneck keep details that GANomaly loses, so that larger and busier images can be rebuilt;
    what is anomalous can pass through them as well. The discriminator learns from its own loss alone, where the
    authors' code adds the generator's feature term to it.

    Logged per epoch: ``loss_adversarial``, ``loss_reconstruction``, ``loss_latent`` and ``loss_discriminator`` in
    training, ``val_score`` and ``image_AUROC`` in validation.

    Args:
        n_features: Channels after the first convolution of each network; the widest layers have eight times as many.
        latent_vec_size: Length of the discriminator's vector of features.
        wadv: Weight of the adversarial loss.
        wcon: Weight of the reconstruction loss: 40 in the paper, 50 in its code.
        wlat: Weight of the latent loss.
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        weight: Share of the discriminator's features in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        pre_processor: Pre-processor, ``True`` for resizing and scaling to [-1, 1], ``False`` for none.
        post_processor: Post-processor, ``True`` for the threshold-ratio one, ``False`` for none.
        evaluator: Evaluator, ``True`` for AUROC, average precision and F1, ``False`` for none.
        visualizer: Visualiser, ``True`` for pictures with the reconstruction, ``False`` for none.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    architecture = (*OneClassDetector.architecture, "n_features", "latent_vec_size")

    def __init__(
        self,
        n_features: int = 32,
        latent_vec_size: int = 100,
        wadv: float = 1,
        wcon: float = 50,
        wlat: float = 1,
        lr: float = 0.0002,
        beta1: float = 0.5,
        beta2: float = 0.999,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        weight: float = 0.1,
        map_sigma: float = 2.0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        image_size = size = to_size(image_size)  # Keeps the argument's name, by which checkpoints store it.
        check_adam(lr, beta1, beta2)
        check_at_least(0, wadv=wadv, wcon=wcon, wlat=wlat)
        model = SkipGANomalyModel(Pyramid(size, input_channels, n_features, latent_vec_size), weight, map_sigma)
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.check_input_size(size)
        self.model: SkipGANomalyModel = model
        self.wadv = wadv
        self.wcon = wcon
        self.wlat = wlat
        self.lr = lr
        self.betas = (beta1, beta2)

    @property
    def discriminator(self) -> nn.Module:
        """The discriminator in training."""
        return self.model.networks.discriminator

    def networks(self) -> tuple[nn.Module, ...]:
        """Return generator and discriminator."""
        return self.model.networks.generator, self.model.networks.discriminator

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Compute both networks' losses from one generator pass and two discriminator passes.

        Returns:
            ``loss``, the losses of generator and discriminator as a vector of two, and ``discriminator_loss``.

        Raises:
            ValueError: If a loss is not finite; the message says which, where and what to try.
        """
        output = self.model(batch.image)
        losses = {
            "loss_adversarial": generator_loss(output.fake_logits),
            "loss_reconstruction": F.l1_loss(output.reconstructions, output.images),
            "loss_latent": F.mse_loss(output.fake_features, output.real_features),
            "loss_discriminator": discriminator_loss(output.real_logits, output.fake_logits),
        }
        self.log_losses(losses, batch, batch_idx)
        of_generator = (
            self.wadv * losses["loss_adversarial"]
            + self.wcon * losses["loss_reconstruction"]
            + self.wlat * losses["loss_latent"]
        )
        return {
            "loss": torch.stack([of_generator, losses["loss_discriminator"]]),
            "discriminator_loss": losses["loss_discriminator"].detach(),
        }

# SPDX-License-Identifier: Apache-2.0
"""EGBAD as an anomalib model."""

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import nn

from ganomaly_plugin.models.components.adversarial import RoutedGradients, discriminator_loss, generator_loss
from ganomaly_plugin.models.components.checks import check_adam
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.components.detector import OneClassDetector, to_size

from .loss import encoder_loss
from .torch_model import EGBADModel, Score


class EGBAD(RoutedGradients, OneClassDetector, AnomalibModule):  # type: ignore[misc]  # Lightning's bases differ
    """Efficient GAN-based anomaly detection (Zenati et al., 2018): a bidirectional GAN.

    A generator makes images of codes, an encoder codes of images, and one discriminator judges pairs of both. An image
    that is not what its encoding generates, or whose pair looks false, is anomalous; no search is needed, as it is in
    AnoGAN. DCGAN blocks take the place of the authors' networks for 28 pixels, so that any size works.

    Logged per epoch: ``loss_discriminator``, ``loss_generator`` and ``loss_encoder`` in training, ``val_score`` and
    ``image_AUROC`` in validation.

    Args:
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        lr: Learning rate of Adam. The authors take 1e-5 and 100 epochs; this one serves trainings of minutes.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        max_features: Upper bound on the channels of any convolution, ``None`` for unbounded doubling.
        score: ``feature_matching`` (the authors' advice) or ``cross_entropy``.
        weight: Share of the discriminator's part in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        pre_processor: Pre-processor, ``True`` for resizing and scaling to [-1, 1], ``False`` for none.
        post_processor: Post-processor, ``True`` for the threshold-ratio one, ``False`` for none.
        evaluator: Evaluator, ``True`` for AUROC, average precision and F1, ``False`` for none.
        visualizer: Visualiser, ``True`` for pictures with the reconstruction, ``False`` for none.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    architecture = (*OneClassDetector.architecture, "n_features", "latent_vec_size", "max_features")

    def __init__(
        self,
        n_features: int = 32,
        latent_vec_size: int = 200,
        lr: float = 0.001,
        beta1: float = 0.5,
        beta2: float = 0.999,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        max_features: int | None = 512,
        score: Score = "feature_matching",
        weight: float = 0.1,
        map_sigma: float = 2.0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        image_size = size = to_size(image_size)  # Keeps the argument's name, by which checkpoints store it.
        check_adam(lr, beta1, beta2)
        pyramid = Pyramid(size, input_channels, n_features, latent_vec_size, max_features)
        model = EGBADModel(pyramid, score, weight, map_sigma)
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.check_input_size(size)
        self.model: EGBADModel = model
        self.lr = lr
        self.betas = (beta1, beta2)

    def networks(self) -> tuple[nn.Module, ...]:
        """Return discriminator, generator and encoder."""
        networks = self.model.networks
        return networks.discriminator, networks.generator, networks.encoder

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        """Return the losses of discriminator, generator and encoder ``(3,)``.

        Raises:
            ValueError: If one is not finite; the message says which, where and what to try.
        """
        true_logits, generated_logits = self.model(batch.image)
        losses = {
            "loss_discriminator": discriminator_loss(true_logits, generated_logits),
            "loss_generator": generator_loss(generated_logits),
            "loss_encoder": encoder_loss(true_logits),
        }
        self.log_losses(losses, batch, batch_idx)
        return torch.stack(list(losses.values()))

# SPDX-License-Identifier: Apache-2.0
"""The plain autoencoder as an anomalib model."""

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from ganomaly_plugin.models.components.checks import check_adam
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.components.detector import OneClassDetector, to_size

from .torch_model import AutoencoderModel


class Autoencoder(OneClassDetector, AnomalibModule):  # type: ignore[misc]  # two of Lightning's bases differ
    """Plain convolutional autoencoder, what the GANomaly paper's "autoencoder-based" rivals have in common.

    Trained on the mean squared error of normal images alone; the score is the same error. Logged per epoch:
    ``loss_reconstruction`` in training, ``val_score`` and ``image_AUROC`` in validation.

    Args:
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code. The narrower, the less it rebuilds of what it has not learnt.
        lr: Learning rate of Adam.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        max_features: Upper bound on the channels of any layer, ``None`` for unbounded doubling.
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
        latent_vec_size: int = 16,
        lr: float = 0.001,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        max_features: int | None = 512,
        map_sigma: float = 2.0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        image_size = size = to_size(image_size)  # Keeps the argument's name, by which checkpoints store it.
        check_adam(lr)
        model = AutoencoderModel(Pyramid(size, input_channels, n_features, latent_vec_size, max_features), map_sigma)
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.check_input_size(size)
        self.model: AutoencoderModel = model
        self.lr = lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        """Return the mean squared error of the batch.

        Raises:
            ValueError: If it is not finite; the message says where and what to try.
        """
        images, reconstructions = self.model(batch.image)
        loss = F.mse_loss(reconstructions, images)
        self.log_losses({"loss_reconstruction": loss}, batch, batch_idx)
        return loss

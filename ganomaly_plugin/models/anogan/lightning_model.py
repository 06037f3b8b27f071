# SPDX-License-Identifier: Apache-2.0
"""AnoGAN as an anomalib model."""

from pathlib import Path
from typing import Any, NoReturn

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import nn
from tqdm import tqdm

from ganomaly_plugin.models.components.adversarial import RoutedGradients, discriminator_loss, generator_loss
from ganomaly_plugin.models.components.checks import check_adam
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.components.detector import OneClassDetector, to_size

from .torch_model import AnoGANModel

VALIDATION_SHARE = 0.1
"""Share of the search's steps in validations before the last epoch, which otherwise would outlast the training."""


class AnoGAN(RoutedGradients, OneClassDetector, AnomalibModule):
    """AnoGAN (Schlegl et al., 2017): a GAN of normal images, and a search at test time.

    An image is anomalous by how far the nearest image that the generator can make is from it, in pixels and in the
    discriminator's features. The search takes hundreds of passes forth and back, and so seconds an image; it cannot be
    exported. f-AnoGAN does without.

    Logged per epoch: ``loss_discriminator`` and ``loss_generator`` in training, ``val_score`` and ``image_AUROC`` in
    validation. Validations before the last epoch search a tenth of the steps.

    Args:
        n_features: Channels after the first convolution.
        latent_vec_size: Length of the latent code.
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        max_features: Upper bound on the channels of any layer, ``None`` for unbounded doubling.
        steps: Steps of the search.
        weight: Share of the discriminator's features in the score, in [0, 1].
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        pre_processor: Pre-processor, ``True`` for resizing and scaling to [-1, 1], ``False`` for none.
        post_processor: Post-processor, ``True`` for the threshold-ratio one, ``False`` for none.
        evaluator: Evaluator, ``True`` for AUROC, average precision and F1, ``False`` for none.
        visualizer: Visualiser, ``True`` for pictures with the nearest image (a second search), ``False`` for none.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    architecture = (*OneClassDetector.architecture, "n_features", "latent_vec_size", "max_features")

    def __init__(
        self,
        n_features: int = 32,
        latent_vec_size: int = 100,
        lr: float = 0.0002,
        beta1: float = 0.5,
        beta2: float = 0.999,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        max_features: int | None = 512,
        steps: int = 500,
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
        model = AnoGANModel(pyramid, steps, weight, map_sigma)
        super().__init__(
            pre_processor=self.configure_pre_processor(size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.check_input_size(size)
        self.model: AnoGANModel = model
        self.lr = lr
        self.betas = (beta1, beta2)

    def networks(self) -> tuple[nn.Module, ...]:
        """Return discriminator and generator."""
        return self.model.networks.discriminator, self.model.networks.generator

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        """Return the losses of discriminator and generator ``(2,)``.

        Raises:
            ValueError: If one is not finite; the message says which, where and what to try.
        """
        real_logits, generated_logits = self.model(batch.image)
        losses = {
            "loss_discriminator": discriminator_loss(real_logits, generated_logits),
            "loss_generator": generator_loss(generated_logits),
        }
        self.log_losses(losses, batch, batch_idx)
        return torch.stack(list(losses.values()))

    def on_validation_start(self) -> None:
        """Search less long before the last epoch."""
        steps = self.hparams["steps"]
        last = self.trainer.max_epochs
        early = self.trainer.training and last is not None and self.current_epoch < last - 1
        self.model.steps = max(1, round(VALIDATION_SHARE * steps)) if early else steps

    def on_validation_end(self) -> None:
        """Search in full again."""
        self.model.steps = self.hparams["steps"]

    def on_test_start(self) -> None:
        """Show how far each search is, if the trainer shows anything."""
        if self.trainer.progress_bar_callback is not None:
            self.model.track = lambda steps: tqdm(steps, desc="search", leave=False)

    def on_predict_start(self) -> None:
        """Show how far each search is, if the trainer shows anything."""
        self.on_test_start()

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: see :meth:`to_onnx`."""
        self.to_onnx(export_root, *args, **kwargs)

    def to_openvino(self, export_root: Path | str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: see :meth:`to_onnx`."""
        self.to_onnx(export_root, *args, **kwargs)

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to export.

        Raises:
            ValueError: Always.
        """
        del export_root, args, kwargs
        msg = (
            "AnoGAN cannot be exported: it searches for each image's code by gradient descent, which no static graph "
            "holds. Train FAnoGAN (f_anogan), whose encoder takes the search's place."
        )
        raise ValueError(msg)

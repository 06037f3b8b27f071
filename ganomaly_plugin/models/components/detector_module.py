# SPDX-License-Identifier: Apache-2.0
"""The base of the package's anomalib models: construction, training step, scoring, checkpoints and exports."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC as PixelAUROC
from anomalib.metrics import Evaluator, F1Score
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import MeanMetric
from torchvision.transforms.v2 import Compose, Normalize, Resize

from ganomaly_plugin import image_reader
from ganomaly_plugin.models.components import export
from ganomaly_plugin.models.components.checks import check_adam
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.components.detector_model import DetectorModel
from ganomaly_plugin.models.components.joint_training import JointTraining, losses_are_checked
from ganomaly_plugin.models.components.metrics import AUROC, AveragePrecision
from ganomaly_plugin.models.components.post_processor import OneClassPostProcessor
from ganomaly_plugin.models.components.pre_processor import WHITE_LEVEL, AntialiasedPreProcessor
from ganomaly_plugin.models.components.result_summary import ResultSummary
from ganomaly_plugin.models.components.space import Pixels, Space
from ganomaly_plugin.models.components.training_config import SaveTrainingConfig
from ganomaly_plugin.models.components.value_range import ValueRange
from ganomaly_plugin.models.components.visualizer import ReconstructionVisualizer

logger = logging.getLogger(__name__)


class DetectorModule(AnomalibModule):
    """Abstract anomalib model of a detector that is trained on normal images only.

    A subclass builds its torch model, ``self.model``, from :meth:`build_space` and :meth:`build_pyramid`, and says in
    :meth:`objectives` what its networks minimise.

    A training takes ``default_epochs`` epochs, unless ``trainer.max_epochs``, ``max_steps`` or ``max_time`` limits it.

    Logged per epoch: the torch model's losses in training; in validation ``val_score``, the mean raw score of the
    normal images (monitor with mode ``min``; NaN where there is none), and ``image_AUROC`` (mode ``max``; NaN unless
    validation holds both classes).

    Args:
        n_features: Channels after the first convolution of each network.
        latent_vec_size: Length of the latent code.
        max_features: Upper bound on the channels of any convolution, ``None`` for unbounded doubling.
        lr: Learning rate of Adam.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width; at least 28.
        input_channels: 3 for colour; 1 turns images grey inside the model.
        map_sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        white_level: Value of white in image files of 16 bits, 4095 for those of a camera of 12 bits. Checkpoints and
            exports keep it. Not for sets with images of 8 bits.
        pre_processor: Pre-processor, ``True`` for resizing and scaling to [-1, 1], ``False`` for none. anomalib's own
            is replaced by one with antialiased exports.
        post_processor: Post-processor, ``True`` for the threshold-ratio one, ``False`` for none.
        evaluator: Evaluator, ``True`` for AUROC, average precision and F1, ``False`` for none.
        visualizer: Visualiser, ``True`` for pictures with the reconstruction, ``False`` for none.

    Attributes:
        trained: Whether the weights are those of a training, in this process or of a checkpoint.
        trained_on: Name and category of the datamodule that the model was trained on; kept in checkpoints.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    model: DetectorModel
    architecture: ClassVar[tuple[str, ...]] = (
        *("image_size", "input_channels", "n_features", "latent_vec_size", "max_features", "map_sigma", "white_level"),
    )
    """Hyper-parameters that a checkpoint and the model it is loaded into must share."""
    renamed_weights: ClassVar[dict[str, str]] = {"model.smooth.": "model.space.smooth."}
    """Prefixes of weights' names in checkpoints of version 0.1.0, and today's."""
    default_epochs: ClassVar[int] = 15
    """Epochs of a training whose length the user does not limit."""
    can_be_exported: ClassVar[bool] = True
    """Whether :meth:`to_onnx` has a graph to write."""
    training_callbacks: ClassVar[tuple[type[Callback], ...]] = ()
    """Callbacks that the training needs besides anomalib's."""

    def __init__(
        self,
        *,
        n_features: int = 32,
        latent_vec_size: int = 100,
        max_features: int | None = 512,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        image_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        map_sigma: float = 2.0,
        white_level: int = WHITE_LEVEL,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_adam(lr, beta1, beta2)
        size = _pair(image_size)
        image_reader.install()
        super().__init__(
            pre_processor=self._build_pre_processor(pre_processor, size, white_level),
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.hparams["image_size"] = size  # Checkpoints and checks see one format.
        self._pixels = partial(Pixels, size, input_channels, map_sigma)
        self._pyramid: Callable[..., Pyramid] = partial(
            Pyramid, n_features=n_features, latent_vec_size=latent_vec_size, max_features=max_features
        )
        self.joint_training = JointTraining()
        self.val_score = MeanMetric(nan_strategy="disable")
        self.clips_gradients = False
        self.trained = False
        self.trained_on = "unknown"
        self._rng_state: torch.Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model, such as a PyTorch export, with the reader that it was trained with."""
        image_reader.install()
        super().__setstate__(state)

    def build_space(self) -> Space:
        """Build what the networks reconstruct: pixels.

        A subclass may return another space for images of the size ``self.hparams["image_size"]``.
        """
        return self._pixels()

    def build_pyramid(self, space: Space, **kwargs: Any) -> Pyramid:
        """Build the shape of the networks for a space.

        Args:
            space: What the networks reconstruct.
            **kwargs: What differs from the model's arguments, and further attributes of the pyramid.

        Raises:
            ValueError: If the pre-processor makes images of another size than the space's.
        """
        self.check_input_size(space)
        return self._pyramid(space.size, space.channels, bound=space.bound, **kwargs)

    def check_input_size(self, space: Space) -> None:
        """Refuse a pre-processor that makes images of another size than the space's.

        Raises:
            ValueError: If it does.
        """
        made = self.input_size  # Each look at it transforms an image.
        if made is not None and tuple(made) != space.image_size:
            msg = (
                f"The pre-processor makes images of {tuple(made)} pixels, but image_size is {space.image_size}: give "
                "both the same size."
            )
            raise ValueError(msg)

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks and the model's own, one of them in the place of the command line's."""
        stock: Any = super().configure_callbacks()
        present: list[Callback] = self.trainer.callbacks
        saving = [SaveTrainingConfig(callback) for callback in present if isinstance(callback, SaveConfigCallback)]
        summaries = [ResultSummary(self.can_be_exported) for _ in saving]  # Of the command line alone.
        own: list[Callback] = [callback() for callback in self.training_callbacks]
        if isinstance(self.model.space, Pixels):
            own.append(ValueRange(self.hparams["white_level"]))
        return [*stock, *saving, *summaries, *own]

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar losses of a step by name, for pre-processed images ``(B, 3, H, W)``."""
        return self.model.losses(self.model.space(images))

    @abstractmethod
    def objectives(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what each network of this step minimises, from the step's losses.

        The names are those of ``self.model.networks``; networks that the step does not train are left out.
        """

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Compute the losses of all networks that this step trains.

        Returns:
            ``loss``, the sum of the networks' objectives, and the named losses.

        Raises:
            ValueError: If a loss is not finite; the message says which, where and what to try.
        """
        images = _images(batch)
        losses = self.losses(images)
        if losses_are_checked(self.device, batch_idx):
            self._check_finite(losses, batch, batch_idx)
        self.log_dict(losses, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return {**losses, "loss": self.joint_training.join(self.objectives(losses), self.model.networks)}

    def _check_finite(self, losses: dict[str, torch.Tensor], batch: ImageBatch, batch_idx: int) -> None:
        values = torch.stack(list(losses.values())).tolist()
        broken = {name: value for name, value in zip(losses, values, strict=True) if not abs(value) < float("inf")}
        if not broken:
            return
        bad_pixels = ~_images(batch).isfinite().flatten(1).all(1)
        if bad_pixels.any():
            advice = f"The pixels of {_names(batch, bad_pixels)} are not finite: repair or remove them."
        else:
            rate = self.hparams["lr"]
            advice = f"Try a learning rate below {rate}, trainer.gradient_clip_val: 1 or trainer.precision: 32-true."
        msg = f"Training diverged in epoch {self.current_epoch}, batch {batch_idx}: {broken}. {advice}"
        raise ValueError(msg)

    def setup(self, stage: str) -> None:
        """Note whether the trainer clips gradients, which the optimiser depends on.

        Raises:
            ValueError: If the trainer would convert the weights to another type than that of the images.
        """
        super().setup(stage)
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision != "32-true":
            msg = (
                f"trainer.precision is {precision}, which converts the weights but not anomalib's images: choose "
                "32-true, bf16-mixed or 16-mixed, whose weights stay in 32 bits."
            )
            raise ValueError(msg)
        self.clips_gradients = bool(self.trainer.gradient_clip_val)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one Adam over all networks."""
        settings = self.hparams
        betas = (settings["beta1"], settings["beta2"])
        # Elsewhere PyTorch's default is as fast, and fused steps exclude clipping under 16-bit mixed precision.
        fused = self.device.type == "cpu" and not self.clips_gradients
        return torch.optim.Adam(self.model.networks.parameters(), lr=settings["lr"], betas=betas, fused=fused)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Take each network's gradient of its own objective in ``loss``, their sum."""
        del args, kwargs
        self.joint_training.backward(loss, self.model.networks)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step all networks, then let the average of those that score follow."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_average()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:
        """Score one validation batch, and note the raw scores of its normal images."""
        del batch_idx
        self._score(batch)
        if batch.gt_label is not None:
            scores: Any = batch.pred_score
            self.val_score.update(scores[~batch.gt_label])
        return batch

    def on_validation_epoch_end(self) -> None:
        """Log the mean raw score of the normal images, in every process, whether it saw one or not."""
        self.log("val_score", self.val_score, prog_bar=True)

    def test_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> ImageBatch:
        """Score one batch."""
        del batch_idx, dataloader_idx
        return self._score(batch)

    predict_step = test_step  # type: ignore[assignment]  # anomalib's is typed for batches of any kind.

    def _score(self, batch: ImageBatch) -> ImageBatch:
        """Add scores and maps to a batch, and two attributes that no post-processing touches.

        These are ``raw_score`` ``(B,)`` and ``reconstruction``, ``(B, 3, H, W)`` in [0, 1] or ``None``.

        Raises:
            ValueError: If a score is not finite; the message names the images.
        """
        # The difference of two nearly equal codes is lost in the rounding of a 16-bit type.
        with torch.autocast(self.device.type, enabled=False):
            output = self.model(_images(batch))
        finite = output.pred_score.isfinite()
        if not finite.all():
            msg = f"The score of {_names(batch, ~finite)} is not finite: check the pixels, or train the model again."
            raise ValueError(msg)
        batch.raw_score = output.pred_score  # type: ignore[attr-defined]
        batch.reconstruction = self.model.space.show(output.reconstruction)  # type: ignore[attr-defined]
        return batch.update(pred_score=output.pred_score, anomaly_map=output.anomaly_map)

    def on_fit_start(self) -> None:
        """Note what the model is trained on, and restore the random state of the checkpoint that training resumes."""
        super().on_fit_start()
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self.trained_on = "/".join(part for part in (datamodule.name, datamodule.category) if part)
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state.cpu())
            self._rng_state = None

    def on_train_start(self) -> None:
        """Note that the weights will be those of a training."""
        self.trained = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the model was trained on, and the random state, with which a resumed training shuffles alike."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["trained"] = self.trained  # The tuner of a learning rate goes back to initial weights.
        checkpoint["trained_on"] = self.trained_on
        # Arguments of load_from_checkpoint take the place of hyper-parameters before anything can compare them.
        checkpoint["architecture"] = {name: self.hparams[name] for name in self.architecture}
        checkpoint["torch_rng_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or architecture before its weights are touched.

        Raises:
            ValueError: If the checkpoint does not fit; the message says what it holds and what was expected.
        """
        saved = checkpoint["hyper_parameters"] | checkpoint.get("architecture", {})
        foreign = "anomalib's own Ganomaly" if "model.discriminator" in str(checkpoint["state_dict"].keys()) else "it"
        checkpoint["state_dict"] = self._rename_weights(checkpoint["state_dict"])
        differing = [
            f"{name} is {saved[name]} in the checkpoint and {self.hparams[name]} in the model"
            for name in self.architecture
            if name in saved and saved[name] != self.hparams[name]
        ]
        same_networks = _networks(checkpoint["state_dict"]) == _networks(self.state_dict())
        if "image_size" not in saved or not (differing or same_networks):
            name = type(self).__name__
            msg = (
                f"This is not a checkpoint of ganomaly_plugin.{name}: {foreign} has other networks. Load it with the "
                f"model that wrote it, or train {name} again."
            )
            raise ValueError(msg)
        if differing:
            msg = f"The checkpoint does not fit this model: {'; '.join(differing)}. Build the model as it was trained."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        self.trained = checkpoint.get("trained", True)
        self.trained_on = checkpoint["trained_on"]
        self._rng_state = checkpoint["torch_rng_state"]

    def _rename_weights(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give the weights of an older version's checkpoint the names of this one."""
        renamed = {}
        for name, value in state.items():
            old = next((prefix for prefix in self.renamed_weights if name.startswith(prefix)), "")
            renamed[self.renamed_weights.get(old, "") + name.removeprefix(old)] = value
        return renamed

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export to PyTorch as anomalib does, without what only the training needs."""
        self._warn_untrained()
        exported = copy(self)
        exported._modules = self._modules | {"model": self.model.for_inference()}
        for name in ("pre_processor", "post_processor", "evaluator", "visualizer"):
            if (component := copy(getattr(self, name))) is not None:
                # A trainer gives its callbacks methods of the model, and with them all networks in training.
                for method in ("log", "log_dict"):
                    vars(component).pop(method, None)
                setattr(exported, name, component)
        return AnomalibModule.to_torch(exported, export_root, model_file_name)

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export to ONNX as anomalib does, into one file where ONNX can hold the weights in one.

        Raises:
            ValueError: If ``opset_version`` is one that PyTorch's exporter cannot write.
        """
        self._warn_untrained()
        settings = export.onnx_settings(self.model.for_inference()) | kwargs
        export.check_opset(settings["opset_version"])
        return super().to_onnx(export_root, *args, **settings)

    def _warn_untrained(self) -> None:
        if not self.trained:
            logger.warning(
                "The exported model has its initial weights: nothing trained it. Train it first, or name its "
                "checkpoint, on the command line with --ckpt_path."
            )

    def to_openvino(self, export_root: Path | str, model_file_name: str = "model", **kwargs: Any) -> Path:
        """Export to OpenVINO as anomalib does, and add the model's metadata.

        Args:
            export_root: Folder of the export.
            model_file_name: Name of the file without its ending.
            **kwargs: Further arguments of anomalib's ``to_openvino``.

        Returns:
            Path of the ``.xml`` file.

        Raises:
            ValueError: If a quantisation has no images to calibrate on; nothing has been exported then.
        """
        export.check_images(kwargs.get("compression_type"), kwargs.get("datamodule"))
        path = super().to_openvino(export_root, model_file_name, **kwargs)
        export.write_metadata(path, export.metadata(self, self.trained_on, self.trained))
        return path

    _post_training_quantization_ov = staticmethod(export.quantise)
    _accuracy_control_quantization_ov = staticmethod(export.quantise_with_accuracy_control)

    @AnomalibModule.trainer.setter  # type: ignore[attr-defined]  # mypy takes the property for a function.
    def trainer(self, trainer: Any) -> None:
        """Attach a trainer, and limit a training that nothing else limits to ``default_epochs``."""
        stock: Any = AnomalibModule.trainer
        stock.__set__(self, trainer)
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return
        timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)
        if trainer.max_epochs is None and trainer.max_steps == -1 and not timed:
            epochs = trainer.fit_loop.max_epochs = self.default_epochs
            logger.info("%s trains %d epochs; trainer.max_epochs changes it.", type(self).__name__, epochs)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No arguments: anomalib would prefer them to the user's."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """One-class: trained on normal images only."""
        return LearningType.ONE_CLASS

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None, white_level: int = WHITE_LEVEL
    ) -> PreProcessor:
        """Return a pre-processor that resizes to ``image_size`` (64x64 by default) and scales values to [-1, 1].

        Args:
            image_size: Height and width in pixels.
            white_level: Value of white in files of 16 bits.
        """
        resize = Resize(image_size or (64, 64), antialias=True)
        middle = white_level / WHITE_LEVEL / 2
        return AntialiasedPreProcessor(transform=Compose([resize, Normalize(mean=[middle] * 3, std=[middle] * 3)]))

    @classmethod
    def _build_pre_processor(
        cls, given: PreProcessor | bool, image_size: tuple[int, int], white_level: int
    ) -> PreProcessor | bool:
        if not 1 <= white_level <= WHITE_LEVEL:
            msg = f"white_level is {white_level}; it must be from 1 to {WHITE_LEVEL}, and is 4095 for 12 bits."
            raise ValueError(msg)
        if given is True:
            return cls.configure_pre_processor(image_size, white_level)
        if white_level != WHITE_LEVEL:
            msg = (
                f"white_level is {white_level}, but is a part of the default pre-processor: leave pre_processor out, "
                f"or give yours Normalize with mean and std {white_level / WHITE_LEVEL / 2:.4g}, and no white_level."
            )
            raise ValueError(msg)
        if type(given) is PreProcessor:  # Its exports would differ from its trainings.
            return AntialiasedPreProcessor(given.transform)
        if given and not isinstance(given, AntialiasedPreProcessor):
            logger.warning(
                "Exports of a model with %s may see other pixels than its training, since anomalib drops antialiasing "
                "there: derive it from AntialiasedPreProcessor.",
                type(given).__name__,
            )
        return given

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
                F1Score(fields=["pred_label", "gt_label"], prefix="image_", strict=False),
                PixelAUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> Visualizer:
        """Return the visualiser that draws input, reconstruction, map and mask side by side."""
        return ReconstructionVisualizer()


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of images given by one side of a square, or by both, perhaps in a list from YAML."""
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size] * 2
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        msg = f"image_size is {image_size}; give one whole number of pixels, or height and width."
        raise ValueError(msg)
    return (sides[0], sides[1])


def _images(batch: ImageBatch) -> torch.Tensor:
    """Return the images as plain tensors, since not all compilers take torchvision's subclass."""
    images: Any = batch.image
    plain: torch.Tensor = images.as_subclass(torch.Tensor)
    return plain


def _networks(state: dict[str, Any]) -> set[str]:
    """Names of the networks' parameters and buffers, without what anomalib adds."""
    return {name for name in state if name.startswith("model.")}


def _names(batch: ImageBatch, chosen: torch.Tensor) -> str:
    """Name the chosen images of a batch by their paths, or by their places where they have none."""
    paths = batch.image_path or [f"image {index} of the batch" for index in range(len(chosen))]
    return ", ".join(str(path) for path, choose in zip(paths, chosen.tolist(), strict=True) if choose)

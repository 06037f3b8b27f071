# SPDX-License-Identifier: Apache-2.0
"""What this package uses of other libraries beyond their public interface.

Private names may change in any release, which is why ``pyproject.toml`` bounds the versions of anomalib and
jsonargparse. When a bound is raised, this is the list to go through.
"""

PRIVATE = {
    "anomalib.data.datamodules.base.image.AnomalibDataModule._setup": (
        "the hook in which a datamodule makes its training and test set"
    ),
    "anomalib.data.datamodules.base.image.AnomalibDataModule._create_val_split": (
        "its synthetic anomalies read files, so images in memory are written to files first"
    ),
    "anomalib.data.datasets.base.image.AnomalibDataset._samples": (
        "the public setter asks for a file of each path, which images in memory lack"
    ),
    "anomalib.metrics.F1AdaptiveThreshold._has_anomalous_samples": (
        "tells whether a validation set has anomalies; ours computes another threshold where it has none"
    ),
    "anomalib.models._get_model_class_by_name": "``get_model`` must find aliases and indirect subclasses",
    "anomalib.models.components.base.export_mixin.mixin.ExportMixin._accuracy_control_quantization_ov": (
        "it calibrates with wrong metrics for models whose AUROC is that of raw scores"
    ),
    "anomalib.models.components.base.export_mixin.mixin.ExportMixin._post_training_quantization_ov": (
        "networks whose scores are small differences need layers kept in full precision"
    ),
    "anomalib.post_processing.post_processor.PostProcessor._checkpoint_config_keys": (
        "arguments that a checkpoint restores"
    ),
    "anomalib.post_processing.post_processor.PostProcessor._image_threshold_metric": "replaced by the one-class metric",
    "anomalib.post_processing.post_processor.PostProcessor._normalize": "replaced by a map that never saturates",
    "anomalib.post_processing.post_processor.PostProcessor._pixel_threshold_metric": "replaced by the one-class metric",
    "jsonargparse._typehints.resolve_class_path_by_name": "the command line must resolve aliases",
    "torch.nn.Module._modules": "swaps submodules of a copied model without a second registration",
}
"""Private names, each with the reason."""

PATCHED = {
    "anomalib.callbacks.get_callbacks": "the command says what it is at where no terminal shows its bars",
    "anomalib.cli.cli.configure_logger": "it gives the root logger two handlers, which print each message twice",
    "anomalib.cli.pipelines.PIPELINE_REGISTRY": "gets the pipelines of the entry points",
    "anomalib.data.AnomalibDataset.__getitem__": "a mask is turned with its image, whose path its reader is not told",
    "anomalib.data.AnomalibDataset.__reduce_ex__": "processes that are not forked read as this one does",
    "anomalib.data.PredictDataset.__reduce_ex__": "the same",
    "anomalib.data.utils.image.read_image": "keeps the range of deep images and the orientation of photographs",
    "anomalib.data.utils.image.read_mask": "the same for masks",
    "anomalib.models.ALLOWED_MODULES": "gets the modules of the entry points",
    "anomalib.models.list_models": "lists indirect subclasses as well, and no abstract class",
    "anomalib.pipelines.tiled_ensemble.components.utils.helper_functions.get_ensemble_model": (
        "builds the models of this package for tiles, which it cannot itself"
    ),
    "anomalib.visualization.image.item_visualizer.visualize_image_item": "shows images as they were read",
}
"""Public names that are replaced or extended at run time, each with the reason. So are those of :data:`PRIVATE` that
are functions of a module."""

# SPDX-License-Identifier: Apache-2.0
"""Models of this package in anomalib's tiled ensemble, which trains one model for each tile of an image.

anomalib 2.7 hands a pre-processor to models whose arguments it keeps in a configuration, which takes none beside
``init_args``; its metrics stage builds a model of 10x10 pixels for its metrics; and what it merges has no raw scores.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any

METRICS_SIZE = (10, 10)
"""Image size that the metrics stage asks for; a tile's, from YAML, is a number or a list."""


def install(module: ModuleType) -> None:
    """Let ``get_ensemble_model`` of anomalib's helper module build the models of this package for a tile's size."""
    stock: Callable[..., Any] = module.get_ensemble_model

    @wraps(stock)
    def get_ensemble_model(
        model_args: dict[str, Any], input_size: int | Sequence[int], normalization_stage: str
    ) -> Any:
        if not _is_ours(model_args["class_path"]):
            return stock(model_args, input_size=input_size, normalization_stage=normalization_stage)
        if input_size == METRICS_SIZE:
            model = module.get_model(model_args)
            _rank_merged_scores(model)
            return model
        model = _build(module.get_model, model_args, input_size)
        if model.pre_processor is not None:
            module.drop_resize_transform(model.pre_processor)  # The datamodule resizes the whole image.
        if model.post_processor is not None:
            model.post_processor.enable_normalization = normalization_stage == module.NormalizationStage.TILE
        return model

    module.get_ensemble_model = get_ensemble_model  # type: ignore[attr-defined]


def _is_ours(class_path: str) -> bool:
    """Whether a class path, as ``get_model`` takes it, names a model of this package."""
    from ganomaly_plugin.models.components.detector_module import DetectorModule

    module, _, name = class_path.rpartition(".")
    named = getattr(sys.modules.get(module or "anomalib.models"), name, None)
    return inspect.isclass(named) and issubclass(named, DetectorModule)


def _build(get_model: Callable[..., Any], model_args: dict[str, Any], tile_size: int | Sequence[int]) -> Any:
    """Build a model for tiles.

    Raises:
        ValueError: If the configuration names another image size.
    """
    height, width = (tile_size, tile_size) if isinstance(tile_size, int) else tile_size
    arguments = dict(model_args.get("init_args") or {})
    given = arguments.setdefault("image_size", [height, width])
    if given not in (height if height == width else None, [height, width], (height, width)):
        msg = f"image_size is {given}, but a model sees tiles of {[height, width]} pixels: leave image_size out."
        raise ValueError(msg)
    return get_model({**model_args, "init_args": arguments | {"visualizer": False}})


def _rank_merged_scores(model: Any) -> None:
    """Let a model's metrics take the merged scores in the place of raw ones."""
    for metric in model.evaluator.test_metrics if model.evaluator is not None else ():
        metric.fields = ["pred_score" if field == "raw_score" else field for field in metric.fields]

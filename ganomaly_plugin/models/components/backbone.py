# SPDX-License-Identifier: Apache-2.0
"""Frozen backbones of timm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn


class Backbone(nn.Module):
    """A frozen backbone, always in evaluation mode, that gives some of its feature maps.

    It is built with random weights, without a network. :meth:`load_pretrained` fetches others.

    Args:
        name: Name of a timm model that has ``features_only``.
        image_size: Height and width of its images in pixels.
        strides: Pixels from place to place of the feature maps to take, ascending.
        layers: Feature maps to take instead: names of their modules, or places among those that the backbone has.

    Attributes:
        channels: Channels of each feature map, in the backbone's order.

    Raises:
        ValueError: If timm has no such backbone, or the backbone no such feature map; the message says which there are.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        image_size: tuple[int, int],
        strides: Sequence[int],
        layers: Sequence[str | int] | None = None,
    ) -> None:
        super().__init__()
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
        if not timm.is_model(name) or config is None:
            similar = timm.list_models(f"*{name}*")[:5] or timm.list_models("*efficientnet_lite*")
            msg = f"backbone is {name!r}, which timm does not have; it has {', '.join(similar)}, and others."
            raise ValueError(msg)
        self.name = name
        self.hub_name: str | None = config.hf_hub_id
        # Transformers have a position embedding for one size of images.
        self._settings: dict[str, Any] = {"features_only": True}
        if config.fixed_input_size:
            self._settings["img_size"] = image_size
        available = self._create().feature_info
        self._settings["out_indices"] = _choose(name, available, strides, layers)
        self.network = self._create().requires_grad_(False).to(memory_format=torch.channels_last)
        self.channels: list[int] = self.network.feature_info.channels()
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self.train(mode=False)

    def _create(self, **kwargs: Any) -> Any:
        return timm.create_model(self.name, **self._settings, **kwargs)

    def load_pretrained(self, weights: Path | None) -> None:
        """Load timm's weights, from a local file if there is one.

        Args:
            weights: File with the weights in timm's names, ``.safetensors`` or ``.pth``.

        Raises:
            ValueError: If the weights cannot be had; the message says where to put them.
        """
        overlay = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
        advice = (
            f"download model.safetensors of https://huggingface.co/{self.hub_name} where there is a network, and give "
            "its path as weights"
        )
        if weights and not Path(weights).is_file():
            msg = f"weights is {weights}, which is no file: {advice}."
            raise ValueError(msg)
        try:
            source = self._create(pretrained=True, **overlay)
        except (OSError, RuntimeError) as error:
            msg = f"The weights of {self.name} cannot be loaded from {weights or 'Hugging Face'}: {advice}."
            raise ValueError(msg) from error
        self.network.load_state_dict(source.state_dict())

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps ``(B, C, h, w)`` of images ``(B, 3, H, W)`` in [0, 1]."""
        maps: list[torch.Tensor] = self.network((images - self.mean) / self.std)
        return maps


def _choose(name: str, available: Any, strides: Sequence[int], layers: Sequence[str | int] | None) -> tuple[int, ...]:
    """Return the places of the chosen feature maps among those of a backbone."""
    names = [each["module"] for each in available.info]
    reductions = [each["reduction"] for each in available.info]
    known: list[Any] = [*reductions] if layers is None else [*names, *range(len(names))]
    chosen: Sequence[Any] = strides if layers is None else layers
    repeated = layers is None and len(set(reductions)) < len(reductions)
    if repeated or not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        given = f"strides is {list(strides)}" if layers is None else f"layers is {list(layers)}"
        maps = ", ".join(f"{layer} (stride {stride})" for layer, stride in zip(names, reductions, strict=True))
        advice = "name some as layers, since strides are not unique" if repeated else "choose some of them, each once"
        msg = f"{given}, but the feature maps of {name} are {maps}: {advice}."
        raise ValueError(msg)
    places = reductions if layers is None else names
    return tuple(sorted(each if layers and isinstance(each, int) else places.index(each) for each in chosen))

# SPDX-License-Identifier: Apache-2.0
"""Small images that stay decoded in memory, because decoding them costs more than all other steps of loading."""

from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pandas import DataFrame
from PIL import Image
from torchvision.transforms.v2 import Transform

from ganomaly_plugin.data.named_dataset import NamedDataset


class InMemoryDataset(NamedDataset):
    """Images of one size in one array, shared by all subsets and copies of the data set.

    Args:
        samples: The columns of :class:`~ganomaly_plugin.data.named_dataset.NamedDataset`; ``position`` is that in the
            array.
        images: uint8 array ``(N, H, W)`` of grey images or ``(N, H, W, 3)`` of colour images.
        augmentations: Applied to each image.
    """

    def __init__(
        self, samples: DataFrame, images: npt.NDArray[np.uint8], augmentations: Transform | None = None
    ) -> None:
        super().__init__(samples, augmentations)
        self.images = images

    def __deepcopy__(self, memo: dict[int, Any]) -> "InMemoryDataset":
        """Copy all but the images: anomalib makes a deep copy for every subset."""
        memo[id(self.images)] = self.images
        copy = type(self).__new__(type(self))
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy

    def read(self, rows: DataFrame) -> torch.Tensor:
        """Return images of the array."""
        # For so few values NumPy is faster than PyTorch, which has to wake its threads.
        pixels = torch.from_numpy(self.images[rows.position.to_numpy()].astype(np.float32) * np.float32(1 / 255))
        return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)

    def to_picture(self, row: Any) -> Image.Image:
        """Return an image of the array."""
        return Image.fromarray(self.images[row.position])

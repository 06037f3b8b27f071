# SPDX-License-Identifier: Apache-2.0
"""Small images that stay decoded in memory, because decoding them costs more than all other steps of loading."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import AnomalibDataset, ImageItem
from pandas import DataFrame
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import Resize, Transform


class InMemoryDataset(AnomalibDataset):
    """Images of one size in one array, shared by all subsets and copies of the data set.

    Their paths are names first of all: there may be no file of that name.

    Args:
        samples: anomalib's columns ``image_path``, ``label``, ``label_index``, ``mask_path`` and ``split``, and
            ``position`` in the array.
        images: uint8 array ``(N, H, W)`` of grey images or ``(N, H, W, 3)`` of colour images.
        augmentations: Applied to each image.
    """

    def __init__(
        self, samples: DataFrame, images: npt.NDArray[np.uint8], augmentations: Transform | None = None
    ) -> None:
        super().__init__(augmentations)
        self.images = images
        self.samples = samples

    @property
    def samples(self) -> DataFrame:
        """anomalib's table of the samples, in the order of their paths."""
        return super().samples

    @samples.setter
    def samples(self, samples: DataFrame) -> None:  # anomalib's own would ask for a file of each path.
        self._samples = samples.sort_values(by="image_path", ignore_index=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> "InMemoryDataset":
        """Copy all but the images: anomalib makes a deep copy for every subset."""
        memo[id(self.images)] = self.images
        copy = type(self).__new__(type(self))
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy

    def __getitem__(self, index: int) -> ImageItem:
        """Return one sample, its image ``(3, H, W)`` in [0, 1]."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ImageItem]:
        """Return several samples: PyTorch's loader asks for a whole batch where a dataset has this method."""
        rows = self.samples.iloc[indices]
        # For so few values NumPy is faster than PyTorch, which has to wake its threads.
        pixels = torch.from_numpy(self.images[rows.position.to_numpy()].astype(np.float32) * np.float32(1 / 255))
        images: Any = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        at_once = isinstance(self.augmentations, Resize)  # The same for every image and channel.
        if self.augmentations and at_once:
            images = self.augmentations(images)
        images = images.expand(-1, 3, -1, -1)
        if self.augmentations and not at_once:
            images = [self.augmentations(image) for image in images]
        labels = torch.from_numpy(rows.label_index.to_numpy(dtype=bool))
        fields = zip(images, labels, rows.image_path, rows.mask_path, strict=True)
        return [
            ImageItem(image=tv_tensors.Image(image), gt_label=label, image_path=image_path, mask_path=mask_path)
            for image, label, image_path, mask_path in fields
        ]

    def write_files(self, folder: Path, minimum_size: int) -> DataFrame:
        """Write the images as PNG files and return the samples with the files' paths, for code that reads only files.

        Args:
            folder: Where the files go.
            minimum_size: Shortest side in pixels; smaller images are enlarged by bilinear interpolation.
        """
        samples = self.samples.copy()
        samples["image_path"] = [str(folder / f"{position:06}.png") for position in samples.position]
        for path, position in zip(samples.image_path, samples.position, strict=True):
            image = Image.fromarray(self.images[position])
            scale = max(1, minimum_size / min(image.size))
            size = (round(image.width * scale), round(image.height * scale))
            image.resize(size, Image.Resampling.BILINEAR).save(path)
        return samples

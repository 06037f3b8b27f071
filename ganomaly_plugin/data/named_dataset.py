# SPDX-License-Identifier: Apache-2.0
"""The base of data sets whose images have a name but no file of their own."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataset, ImageItem
from pandas import DataFrame
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import Resize, Transform


class NamedDataset(AnomalibDataset):
    """Images with names in the place of paths, read a batch at a time.

    Args:
        samples: anomalib's columns ``image_path``, ``label``, ``label_index``, ``mask_path`` and ``split``, and
            ``position``, a number of each image.
        augmentations: Applied to each image.
    """

    def __init__(self, samples: DataFrame, augmentations: Transform | None = None) -> None:
        super().__init__(augmentations)
        self.samples = samples

    @property
    def samples(self) -> DataFrame:
        """anomalib's table of the samples, in the order of their paths."""
        return super().samples

    @samples.setter
    def samples(self, samples: DataFrame) -> None:  # anomalib's own would ask for a file of each path.
        self._samples = samples.sort_values(by="image_path", ignore_index=True)

    @abstractmethod
    def read(self, rows: DataFrame) -> torch.Tensor:
        """Return the images of some samples, all grey or all colour, float32 ``(B, 1 or 3, H, W)`` in [0, 1]."""

    @abstractmethod
    def to_picture(self, row: Any) -> Image.Image:
        """Return the image of one sample as it is stored."""

    def __getitem__(self, index: int) -> ImageItem:
        """Return one sample, its image ``(3, H, W)`` in [0, 1]."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ImageItem]:
        """Return several samples: PyTorch's loader asks for a whole batch where a dataset has this method."""
        rows = self.samples.iloc[indices]
        images: Any = self.read(rows)
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
        for path, row in zip(samples.image_path, self.samples.itertuples(), strict=True):
            image = self.to_picture(row)
            scale = max(1, minimum_size / min(image.size))
            size = (round(image.width * scale), round(image.height * scale))
            image.resize(size, Image.Resampling.BILINEAR).save(path)
        return samples

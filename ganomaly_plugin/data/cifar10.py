# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10: 60,000 colour images of 32x32 pixels."""

from typing import ClassVar

from torchvision import datasets

from ganomaly_plugin.data.torchvision_set import TorchvisionDataModule


class CIFAR10(TorchvisionDataModule):
    """Small photographs of vehicles and animals (Krizhevsky 2009), 50,000 for training and 10,000 for the test.

    Args:
        root: Folder that holds, or will hold, torchvision's folder ``cifar-10-batches-py``. What is missing is
            downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`. The classes are named as
            in the GANomaly paper; ``airplane`` and ``automobile`` are understood as well.

    Example:
        >>> datamodule = CIFAR10(abnormal_class="car")
        >>> datamodule.category
        'abnormal-car'
    """

    class_names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    synonyms: ClassVar = {"airplane": "plane", "automobile": "car"}
    source = datasets.CIFAR10

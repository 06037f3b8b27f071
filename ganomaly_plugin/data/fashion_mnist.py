# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST: 70,000 grey images of 28x28 pixels."""

from torchvision import datasets

from ganomaly_plugin.data.torchvision_set import TorchvisionDataModule


class FashionMNIST(TorchvisionDataModule):
    """Pictures of clothes (Xiao et al. 2017), 60,000 of them for training and 10,000 for the test.

    Args:
        root: Folder that holds, or will hold, torchvision's folder ``FashionMNIST``. What is missing is downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Example:
        >>> datamodule = FashionMNIST(abnormal_class="ankle boot")
        >>> datamodule.category
        'abnormal-ankle boot'
    """

    class_names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    source = datasets.FashionMNIST

# SPDX-License-Identifier: Apache-2.0
"""MNIST: 70,000 grey images of 28x28 pixels."""

from torchvision import datasets

from ganomaly_plugin.data.torchvision_set import TorchvisionDataModule


class MNIST(TorchvisionDataModule):
    """Handwritten digits (LeCun et al. 1998), 60,000 of them for training and 10,000 for the test.

    Args:
        root: Folder that holds, or will hold, torchvision's folder ``MNIST``. What is missing is downloaded.
        **kwargs: Arguments of :class:`~ganomaly_plugin.data.datamodule.OneVsRestDataModule`.

    Example:
        >>> datamodule = MNIST(abnormal_class=2)
        >>> datamodule.category
        'abnormal-2'
    """

    class_names = tuple(str(digit) for digit in range(10))
    source = datasets.MNIST

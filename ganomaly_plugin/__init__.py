# SPDX-License-Identifier: Apache-2.0
"""GANomaly for anomalib.

Public names load on first use, so that importing the package imports neither PyTorch nor anomalib.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.cifar10 import CIFAR10
    from .data.class_folder import ClassFolder
    from .data.digits import Digits
    from .data.mnist import MNIST, FashionMNIST
    from .data.patches import FullImages, Patches
    from .models.ae import Autoencoder
    from .models.anogan import AnoGAN
    from .models.egbad import EGBAD
    from .models.f_anogan import FAnoGAN
    from .models.ganomaly import GANomaly
    from .models.skip_ganomaly import SkipGANomaly
    from .models.vae import VAE

__all__ = [
    "CIFAR10",
    "EGBAD",
    "MNIST",
    "VAE",
    "AnoGAN",
    "Autoencoder",
    "ClassFolder",
    "Digits",
    "FAnoGAN",
    "FashionMNIST",
    "FullImages",
    "GANomaly",
    "Patches",
    "SkipGANomaly",
]

_MODULES = {
    "AnoGAN": "ganomaly_plugin.models.anogan",
    "Autoencoder": "ganomaly_plugin.models.ae",
    "CIFAR10": "ganomaly_plugin.data.cifar10",
    "ClassFolder": "ganomaly_plugin.data.class_folder",
    "EGBAD": "ganomaly_plugin.models.egbad",
    "Digits": "ganomaly_plugin.data.digits",
    "FAnoGAN": "ganomaly_plugin.models.f_anogan",
    "FashionMNIST": "ganomaly_plugin.data.mnist",
    "FullImages": "ganomaly_plugin.data.patches",
    "GANomaly": "ganomaly_plugin.models.ganomaly",
    "MNIST": "ganomaly_plugin.data.mnist",
    "Patches": "ganomaly_plugin.data.patches",
    "SkipGANomaly": "ganomaly_plugin.models.skip_ganomaly",
    "VAE": "ganomaly_plugin.models.vae",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    public: object = getattr(import_module(_MODULES[name]), name)
    return public


def __dir__() -> list[str]:
    return [*globals(), *__all__]

# SPDX-License-Identifier: Apache-2.0
"""GANomaly for anomalib.

Public names load on first use, so that importing the package imports neither PyTorch nor anomalib.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.digits import Digits
    from .models.ganomaly import GANomaly

__all__ = ["Digits", "GANomaly"]

_MODULES = {"Digits": "ganomaly_plugin.data.digits", "GANomaly": "ganomaly_plugin.models.ganomaly"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    public: object = getattr(import_module(_MODULES[name]), name)
    return public


def __dir__() -> list[str]:
    return [*globals(), *__all__]

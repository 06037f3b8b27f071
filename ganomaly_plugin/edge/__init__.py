# SPDX-License-Identifier: Apache-2.0
"""Anomaly detection on devices, with only OpenVINO, NumPy and Pillow.

The public names load on first use, so that the command can say that OpenVINO is missing.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "Detector": ".detector",
    "ImageTooLargeError": ".image_input",
    "NotADetectorError": ".exported_model",
    "Prediction": ".detector",
}

__all__ = ["Detector", "ImageTooLargeError", "NotADetectorError", "Prediction"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_MODULES[name], __name__), name)

# SPDX-License-Identifier: Apache-2.0
"""Anomaly detection on devices, with only OpenVINO, NumPy and Pillow."""

from .detector import Detector, NotADetectorError, Prediction

__all__ = ["Detector", "NotADetectorError", "Prediction"]

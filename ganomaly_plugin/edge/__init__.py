# SPDX-License-Identifier: Apache-2.0
"""Anomaly detection on devices, with OpenVINO, NumPy and Pillow alone."""

from .detector import Detector, NotADetectorError, Prediction

__all__ = ["Detector", "NotADetectorError", "Prediction"]

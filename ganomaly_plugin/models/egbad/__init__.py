# SPDX-License-Identifier: Apache-2.0
"""EGBAD, efficient GAN-based anomaly detection."""

from .lightning_model import EGBAD

__all__ = ["EGBAD"]

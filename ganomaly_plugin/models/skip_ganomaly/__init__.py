# SPDX-License-Identifier: Apache-2.0
"""Skip-GANomaly, GANomaly's successor with a U-Net."""

from .lightning_model import SkipGANomaly

__all__ = ["SkipGANomaly"]

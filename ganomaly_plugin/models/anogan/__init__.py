# SPDX-License-Identifier: Apache-2.0
"""AnoGAN, which searches for the code of an image at test time."""

from .lightning_model import AnoGAN

__all__ = ["AnoGAN"]

# SPDX-License-Identifier: Apache-2.0
"""f-AnoGAN, which learns to find the code that AnoGAN searches for."""

from .lightning_model import FAnoGAN

__all__ = ["FAnoGAN"]

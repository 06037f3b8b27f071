# SPDX-License-Identifier: Apache-2.0
"""Plain convolutional autoencoder."""

from .lightning_model import Autoencoder

__all__ = ["Autoencoder"]

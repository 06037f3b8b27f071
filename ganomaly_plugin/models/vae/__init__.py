# SPDX-License-Identifier: Apache-2.0
"""Variational autoencoder with reconstruction probability."""

from .lightning_model import VAE

__all__ = ["VAE"]

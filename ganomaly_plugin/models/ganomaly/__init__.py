# SPDX-License-Identifier: Apache-2.0
"""GANomaly: semi-supervised anomaly detection via adversarial training (Akcay et al., ACCV 2018)."""

from .lightning_model import GANomaly
from .torch_model import GANomalyModel

__all__ = ["GANomaly", "GANomalyModel"]

# SPDX-License-Identifier: Apache-2.0
"""GANomaly on the features of a pretrained backbone."""

from .lightning_model import FeatureGANomaly
from .torch_model import FeatureGANomalyModel

__all__ = ["FeatureGANomaly", "FeatureGANomalyModel"]

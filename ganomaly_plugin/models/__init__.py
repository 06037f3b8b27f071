# SPDX-License-Identifier: Apache-2.0
"""Anomaly detectors of the GANomaly family, each an anomalib model."""

# First of all: its import may register the models, which must not happen while one of them is half imported.
import anomalib.models  # noqa: F401

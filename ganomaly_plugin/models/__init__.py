# SPDX-License-Identifier: Apache-2.0
"""Anomaly detectors of the GANomaly family, each an anomalib model."""

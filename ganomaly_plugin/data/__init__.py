# SPDX-License-Identifier: Apache-2.0
"""Data sets as anomalib datamodules, the protocol they share, and a reader for every kind of image file."""

# First of all: anomalib registers this package's datamodules when it is imported, and must find none half imported.
import anomalib.data  # noqa: F401

# SPDX-License-Identifier: Apache-2.0
"""What several models share: networks, scores, metrics, post-processing and pictures."""

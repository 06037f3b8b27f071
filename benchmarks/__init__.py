# SPDX-License-Identifier: Apache-2.0
"""Scripts that make every figure the README quotes."""

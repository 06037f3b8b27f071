# SPDX-License-Identifier: Apache-2.0
"""How the tables of the benchmarks write their figures."""

import numpy as np


def mean_and_deviation(values: np.ndarray) -> str:
    """Format the mean, and the standard deviation where there are several seeds."""
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")

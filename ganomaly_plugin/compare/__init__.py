# SPDX-License-Identifier: Apache-2.0
"""Side-by-side comparison of anomaly detectors: ``anomalib compare``, and :func:`ganomaly_plugin.compare.compare`."""

from typing import TYPE_CHECKING

from ganomaly_plugin import startup

if TYPE_CHECKING:
    from .comparison import compare

__all__ = ["compare"]

startup.install()  # The runs' processes know the names also where the start-up hook is off.


def __getattr__(name: str) -> object:
    """Load on first use, so that the subcommand's arguments cost the other commands nothing."""
    if name != "compare":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from .comparison import compare

    return compare

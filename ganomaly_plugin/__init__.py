# SPDX-License-Identifier: Apache-2.0
"""GANomaly for anomalib.

The public classes are those of the entry points in ``pyproject.toml``, the one table of names: the class of the entry
``mnist`` in the group ``anomalib.data`` is defined in ``ganomaly_plugin.data.mnist``. A class loads on first use, so
that importing the package imports neither PyTorch nor anomalib.
"""

from functools import cache
from importlib import import_module
from typing import Any


@cache
def _module_names() -> dict[str, str]:
    """Return the module of each public class, relative to this package."""
    from importlib.metadata import entry_points  # Takes longer than the rest of the package's import.

    modules = {"FullImages": ".data.patches"}  # A callback, which anomalib does not look up by a short name.
    for kind in ("models", "data"):
        entries = entry_points(group=f"anomalib.{kind}")
        modules |= {entry.attr: f".{kind}.{entry.name}" for entry in entries if entry.module == __name__}
    return modules


def __getattr__(name: str) -> Any:
    if name not in _module_names():
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_module_names()[name], __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_module_names()]

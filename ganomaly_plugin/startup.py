# SPDX-License-Identifier: Apache-2.0
"""The start-up hook that lets anomalib know the plugin.

anomalib 2.7 has no plug-in mechanism. ``startup.pth``, which the installation puts into site-packages, waits in every
interpreter for anomalib to be imported, and then calls :func:`install`. It imports nothing itself, so interpreters that
never import anomalib pay some microseconds. Set ``GANOMALY_PLUGIN_DISABLE=1`` to switch the hook off.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

DISABLE = "GANOMALY_PLUGIN_DISABLE"

MODULES = (
    "anomalib.cli",
    "anomalib.cli.cli",
    "anomalib.cli.pipelines",
    "anomalib.data",
    "anomalib.models",
    "anomalib.pipelines.tiled_ensemble.components.utils.helper_functions",
)
"""Modules of anomalib that something is prepared for, or registered with."""


class Finder(MetaPathFinder):
    """Finds modules through the other finders, and registers the plugin once anomalib's have been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a loader that registers, or ``None`` for other modules."""
        if fullname not in MODULES:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, Finder) or not hasattr(finder, "find_spec"):  # Python skips such finders too.
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
                spec.loader.exec_module = _then_register(spec.loader.exec_module)  # type: ignore[method-assign,assignment]
                return spec
        return None


def install() -> None:
    """Put the finder in front of the others; ``startup.pth`` calls this unless the environment says not to."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def _then_register(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Extend the execution of a module by its preparation, and by the registration of what the plugin has for it."""

    def execute_and_register(module: ModuleType) -> None:
        _call("prepare", module)
        execute(module)
        _call("register", module)

    return execute_and_register


def _call(step: str, module: ModuleType) -> None:
    """Call a function of the registration. Nothing that is wrong there may keep anomalib from starting."""
    try:
        from ganomaly_plugin import registration

        getattr(registration, step)(module)
    except Exception as error:
        warnings.warn(
            f"ganomaly-plugin could not {step} {module.__name__}: {error!r}. anomalib works without it; "
            f"reinstall ganomaly-plugin to repair it, or set {DISABLE}=1 to silence this.",
            stacklevel=3,
        )

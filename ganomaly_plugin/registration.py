# SPDX-License-Identifier: Apache-2.0
"""Tells anomalib and its command line what the entry points name.

The entry-point groups ``anomalib.models``, ``anomalib.data`` and ``anomalib.pipelines`` are the one table of names, of
this package's and of any other's. A model's or datamodule's name is an alias of its class in the command line, in YAML
and in anomalib's look-ups, a pipeline's name a subcommand; names that anomalib has itself keep their meaning.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from ganomaly_plugin import console, tiled_ensemble


def prepare(module: ModuleType) -> None:
    """Let the command say that it loads, and print nothing that users cannot act on, before it is executed."""
    if module.__name__ == "anomalib.cli":
        console.announce()
        console.ignore_warnings()


def register(module: ModuleType) -> None:
    """Register what the entry points name with the module of anomalib for its kind.

    Args:
        module: ``anomalib.models``, ``anomalib.data``, ``anomalib.cli`` or one of its modules, or the helper functions
            of the tiled ensemble.
    """
    if module.__name__ == "anomalib.cli.cli":
        console.print_once(module)
        console.say_what_it_is_at()
    if module.__name__.startswith("anomalib.pipelines.tiled_ensemble"):
        tiled_ensemble.install(module)
        return
    if module.__name__ == "anomalib.cli.pipelines":
        for entry, pipeline in _loaded("anomalib.pipelines"):
            if module.PIPELINE_REGISTRY is not None:
                module.PIPELINE_REGISTRY.setdefault(entry.name, pipeline)
        return
    if module.__name__.startswith("anomalib.cli"):
        return
    for entry, loaded in _loaded(module.__name__):
        for name in (entry.name, loaded.__name__):
            if not hasattr(module, name):
                setattr(module, name, loaded)
    if module.__name__ == "anomalib.models":
        module.ALLOWED_MODULES.update(entry.module for entry in entry_points(group="anomalib.models"))
        _teach_model_lookup(module)
    _teach_command_line()


def _loaded(group: str) -> Iterator[tuple[EntryPoint, type]]:
    """Load the classes of a group. One that cannot be loaded is left out with a warning that names it."""
    for entry in entry_points(group=group):
        try:
            loaded = entry.load()
            loaded.__name__  # noqa: B018  (what is no class has none)
        except Exception as error:
            warnings.warn(
                f"{entry.name!r} ({entry.value}) is not available in {group}: {error!r}. "
                "Reinstall the package that provides it.",
                stacklevel=3,
            )
        else:
            yield entry, loaded


def _concrete_subclasses(base: type[Any]) -> Iterator[type]:
    """Yield the classes below ``base``, at any depth, that can be instantiated."""
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from _concrete_subclasses(subclass)


def _teach_model_lookup(module: Any) -> None:
    """Let ``get_model`` and ``list_models`` see every concrete model, not only direct subclasses of the base.

    A name is first compared with the classes' names, then with the aliases, which are what snake case lists, and then
    with the classes' names without regard to case.
    """
    stock_list: Callable[[str], set[str]] = module.list_models
    spelling = {"snake": module.convert_to_snake_case, "pascal": str, "title": module.convert_to_title_case}

    @wraps(stock_list)
    def list_models(case: str = "snake") -> set[str]:
        if case not in spelling:
            return stock_list(case)  # It says what is wrong.
        names = {model: spelling[case](model.__name__) for model in _concrete_subclasses(module.AnomalibModule)}
        if case == "snake":
            names |= {model: entry.name for entry, model in _loaded("anomalib.models")}
        return set(names.values())

    @wraps(module._get_model_class_by_name)
    def look_up(name: str) -> type:
        models = list(_concrete_subclasses(module.AnomalibModule))
        aliased = [entry.load() for entry in entry_points(group="anomalib.models") if entry.name == name.lower()]
        folded = module.convert_snake_to_pascal_case(name).lower()
        found: list[type] = [
            *(model for model in models if model.__name__ == name),
            *aliased,
            *(model for model in reversed(models) if model.__name__.lower() == folded),
        ]
        if not found:
            msg = f"There is no model {name!r}: choose one of {', '.join(sorted(list_models()))}."
            raise module.UnknownModelError(msg)
        return found[0]

    module.list_models = list_models
    module._get_model_class_by_name = look_up


@cache
def _teach_command_line() -> None:
    """Let jsonargparse resolve aliases wherever it resolves the names of classes."""
    from jsonargparse import _typehints

    stock: Callable[[Any, str], str] = _typehints.resolve_class_path_by_name

    @wraps(stock)
    def resolve(cls: type | tuple[type, ...], name: str) -> str:
        path = stock(cls, name)
        if "." in path:
            return path
        bases = tuple(base for base in (cls if isinstance(cls, tuple) else (cls,)) if inspect.isclass(base))
        for group in ("anomalib.models", "anomalib.data"):
            for entry in entry_points(group=group, name=name):
                if issubclass(entry.load(), bases):
                    return f"{entry.module}.{entry.attr}"
        return path

    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("jsonargparse") and vars(module).get("resolve_class_path_by_name") is stock:
            module.resolve_class_path_by_name = resolve  # type: ignore[attr-defined]

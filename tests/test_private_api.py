# SPDX-License-Identifier: Apache-2.0
"""The list of other libraries' private names is complete, and right for the installed versions."""

import ast
import inspect
import pkgutil
import textwrap
from functools import cache
from importlib import import_module
from typing import Any

import pytest

import ganomaly_plugin
from ganomaly_plugin.private_api import PATCHED, PRIVATE

DOCUMENTED = {"_asdict", "_exit", "_fields", "_replace"}
"""Names of the standard library that are public in spite of their underscore."""


def is_private(name: str) -> bool:
    """Whether a name starts with exactly one underscore, and has more to it."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


@cache
def defined_or_used(tree: ast.AST) -> set[str]:
    """Return the private names of attributes, functions and variables in a piece of source."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return set(filter(is_private, names))


@cache
def source_of(thing: Any) -> ast.AST:
    """Return the syntax tree of a module or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def imported(tree: ast.AST) -> set[str]:
    """Return the private parts of what a module imports."""
    paths = [
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    return {part for path in paths for part in path.split(".") if is_private(part)}


def used_of_others(tree: ast.AST) -> set[str]:
    """Return the private attributes of objects other than ``self`` and its classes, unless the module defines them."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and ast.unparse(node.value) not in {"self", "cls", "super()", "type(self)"}
    } - own


def shared_with_bases(cls: type) -> set[str]:
    """Return the private names in a class of ours that the source of a foreign base class knows as well."""
    ours = defined_or_used(source_of(cls))
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] in {"anomalib", "lightning", "torch"}]
    return {name for base in bases for name in ours & defined_or_used(source_of(base))}


def private_names(module: Any) -> set[str]:
    """Return all private names of other libraries that a module of ours uses."""
    tree = source_of(module)
    classes = [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == module.__name__]
    found = imported(tree) | used_of_others(tree)
    return found.union(*map(shared_with_bases, classes)) - DOCUMENTED


def listed_names() -> set[str]:
    """Return the private parts of the listed names."""
    return {part for path in PRIVATE for part in path.split(".") if is_private(part)}


def test_sources_use_what_is_listed() -> None:
    """Neither more nor less."""
    modules = [info.name for info in pkgutil.walk_packages(ganomaly_plugin.__path__, "ganomaly_plugin.")]
    assert set().union(*(private_names(import_module(module)) for module in modules)) == listed_names()


@pytest.mark.parametrize("path", [*PRIVATE, *PATCHED])
def test_listed_names_exist(path: str) -> None:
    """In the installed version: as a module's or class's attribute, or as one that a class gives its instances."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        break
    *middle, last = parts[length:]
    for part in middle:
        owner = getattr(owner, part)
    assert hasattr(owner, last) or last in defined_or_used(source_of(owner))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from anomalib.models import _legacy_compat", "_legacy_compat"),
        ("from jsonargparse._typehints import ActionTypeHint", "_typehints"),
        ("def f(trainer):\n    return trainer._results", "_results"),
    ],
)
def test_further_names_are_found(source: str, name: str) -> None:
    """Imported, or used of an object."""
    tree = ast.parse(source)
    assert imported(tree) | used_of_others(tree) == {name}


def test_overridden_names_are_found() -> None:
    """A class that overrides a private hook uses it, whether or not it calls the base's."""
    from anomalib.data import AnomalibDataModule

    class Planted(AnomalibDataModule):
        def _create_test_split(self) -> None:
            self._own = 1

    assert shared_with_bases(Planted) == {"_create_test_split"}

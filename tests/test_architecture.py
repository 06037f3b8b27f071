# SPDX-License-Identifier: Apache-2.0
"""The direction of imports, and the dependencies that they need, read from the sources."""

import ast
import sys
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = "ganomaly_plugin"

MAY_IMPORT = {
    "image_file": set(),
    "image_reader": {"image_file"},
    "picture_files": set(),
    "data": {"image_file", "image_reader", "picture_files"},
    "edge": {"image_file"},
    "models": {"image_reader", "picture_files"},
    "compare": {"data", "models", "edge", "image_file", "image_reader", "progress_lines", "startup"},
    "registration": {"console", "tiled_ensemble"},
    "console": {"progress_lines"},
    "progress_lines": set(),
    "tiled_ensemble": {"models"},
    "startup": {"registration"},
    "__main__": {"startup"},
    "private_api": set(),
}
"""What each part of the package may import from the others."""

ON_DEVICES = {"PIL", "cv2", "ganomaly_plugin", "numpy", "openvino"}
"""What the edge part may import besides the standard library."""

OPTIONAL = {"cv2", "nncf", "openvino", "ray"}
"""What only some users have, so that the package imports it inside of functions (OpenVINO in the edge part aside)."""


class Import(NamedTuple):
    """One import in a source file."""

    name: str
    """Full name of the module, or of what is imported from it."""
    at_top: bool
    """Whether it runs when the file is imported."""


def find_imports(source: str, module: str, is_package: bool = False) -> list[Import]:
    """Return all imports of a module, those inside of functions too."""
    tree = ast.parse(source)
    parts = module.split(".") if is_package else module.split(".")[:-1]
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = [*parts[: len(parts) + 1 - node.level], *([node.module] if node.module else [])]
            origin = origin if node.level else [node.module or ""]
            found += [Import(".".join([*origin, alias.name]), id(node) not in inside) for alias in node.names]
    return found


def read_tree(*folders: str) -> dict[str, list[Import]]:
    """Return the imports of every module below the folders, by the module's name."""
    tree = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        tree[module] = find_imports(path.read_text(), module, is_package)
    return tree


def module_graph(tree: dict[str, list[Import]]) -> dict[str, set[str]]:
    """Return which modules of the tree each of them imports: ``from a import b`` is ``a.b`` where that is a module."""
    graph: dict[str, set[str]] = {}
    for module, imports in tree.items():
        graph[module] = set()
        for imported in imports:
            owner = imported.name.rpartition(".")[0]
            graph[module] |= {next((name for name in (imported.name, owner) if name in tree), "")} - {""}
    return graph


def reachable(graph: dict[str, set[str]], module: str) -> set[str]:
    """Return a module and all that it imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += graph[current]
    return seen


def forbidden_arrows(tree: dict[str, list[Import]]) -> list[str]:
    """Return the imports from one part of the package into another that :data:`MAY_IMPORT` does not allow."""
    return [
        f"{module} imports {target}"
        for module, targets in module_graph(tree).items()
        for target in targets
        if module != PACKAGE
        and part_of(target) != part_of(module)
        and part_of(target) not in MAY_IMPORT[part_of(module)]
    ]


def part_of(module: str) -> str:
    """Return the part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def roots(imports: Iterable[Import]) -> set[str]:
    """Return the top-level packages of imports, without the standard library."""
    standard = sys.stdlib_module_names | {"tomllib"}  # Since Python 3.11.
    return {imported.name.split(".")[0] for imported in imports} - standard


@pytest.fixture(scope="module")
def tree() -> dict[str, list[Import]]:
    """All imports of the package."""
    return read_tree(PACKAGE)


def test_no_cycle(tree: dict[str, list[Import]]) -> None:
    """Every module can be understood before those that import it."""
    TopologicalSorter(module_graph(tree)).prepare()


def test_arrows_point_one_way(tree: dict[str, list[Import]]) -> None:
    """Data, models and edge know nothing of each other, and only the comparison knows all."""
    assert {part_of(module) for module in tree} - {PACKAGE} == set(MAY_IMPORT)
    assert forbidden_arrows(tree) == []


def test_edge_imports_nothing_heavy(tree: dict[str, list[Import]]) -> None:
    """Nothing that it reaches inside the package, its own ``__init__`` included, needs more than a device has."""
    graph = module_graph(tree)
    modules = {name for edge in tree if part_of(edge) == "edge" for name in reachable(graph, edge)} | {PACKAGE}
    assert roots(imported for module in modules for imported in tree[module]) <= ON_DEVICES


def test_networks_and_losses_import_no_lightning(tree: dict[str, list[Import]]) -> None:
    """Nothing that they reach inside the package does, so that they can be read and used without a trainer."""
    graph = module_graph(tree)
    networks = [module for module in tree if module.endswith((".torch_model", ".loss"))]
    assert networks
    for module in {name for network in networks for name in reachable(graph, network)}:
        assert not roots(tree[module]) & {"lightning", "pytorch_lightning"}, module


def test_nothing_imports_tests_or_benchmarks(tree: dict[str, list[Import]]) -> None:
    """The package stands alone, and benchmarks need no tests."""
    assert not {name for imports in tree.values() for name in roots(imports)} & {"benchmarks", "tests"}
    assert not {name for imports in read_tree("benchmarks").values() for name in roots(imports)} & {"tests"}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("ganomaly_plugin.data.x", "from ganomaly_plugin.models import ae", "ganomaly_plugin.models.ae"),
        ("ganomaly_plugin.data.x", "def f():\n    import ganomaly_plugin.models.ae", "ganomaly_plugin.models.ae"),
        ("ganomaly_plugin.models.x", "from ..data import digits", "ganomaly_plugin.data.digits"),
        ("ganomaly_plugin.models.x", "from ganomaly_plugin import Digits", "ganomaly_plugin"),
        ("ganomaly_plugin.edge.x", "from ganomaly_plugin.compare.grid import load", "ganomaly_plugin.compare.grid"),
    ],
)
def test_planted_violations_are_found(tree: dict[str, list[Import]], module: str, source: str, complaint: str) -> None:
    """Absolute, relative, through the public names, and inside of functions."""
    planted = tree | {module: find_imports(source, module)}
    assert forbidden_arrows(planted) == [f"{module} imports {complaint}"]


def read_requirements() -> tuple[set[str], dict[str, set[str]]]:
    """Return the distributions that ``pyproject.toml`` requires: always, and by extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = set()
        for requirement in map(Requirement, requirements):
            own = requirement.name == project["name"]
            found |= (
                {name for extra in requirement.extras for name in names(extras[extra])} if own else {requirement.name}
            )
        return {canonicalize_name(name) for name in found}

    return names(project["dependencies"]), {extra: names(extras[extra]) for extra in extras}


knows_distributions = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="importlib.metadata knows only distributions that list their packages"
)
installed_distributions = cache(packages_distributions)  # It reads the metadata of all that is installed.


def distributions(modules: Iterable[str]) -> set[str]:
    """Return the installed distribution of each module; a module of several belongs to the one of its name, if any."""
    known = installed_distributions()
    found = set()
    for module in modules:
        candidates = {canonicalize_name(name) for name in known.get(module, [module])}
        found |= candidates & {canonicalize_name(module)} or candidates
    return found - {canonicalize_name(PACKAGE)}


@knows_distributions
def test_dependencies_are_what_is_imported(tree: dict[str, list[Import]]) -> None:
    """No more and no less; what is optional comes with an extra."""
    required, extras = read_requirements()
    imported = {name for imports in tree.values() for name in roots(imports)}
    assert distributions(imported - OPTIONAL) == required
    assert distributions(imported & OPTIONAL - {"cv2"}) <= extras["openvino"] | extras["ray"]
    for module, imports in tree.items():
        early = roots(each for each in imports if each.at_top) & OPTIONAL
        assert early <= ({"openvino"} if part_of(module) == "edge" else set()), module


@knows_distributions
def test_the_test_extra_holds_what_tests_and_benchmarks_import() -> None:
    """Besides what the package itself requires, and OpenCV, which anomalib requires."""
    required, extras = read_requirements()
    imported = {name for imports in read_tree("tests", "benchmarks").values() for name in roots(imports)}
    assert distributions(imported - {"benchmarks", "tests", "cv2"}) <= required | extras["test"]


def test_bounds_of_the_patched_libraries() -> None:
    """Their private names may move in the next minor release, so a new one needs a look first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    assert "2.7.5" in bounds["anomalib"] and "2.8" not in bounds["anomalib"]
    assert "4.46.3" in bounds["jsonargparse"] and "4.47.0" not in bounds["jsonargparse"]
    assert "4.27.6" not in bounds["jsonargparse"]

# SPDX-License-Identifier: Apache-2.0
"""What the files for contributors say agrees with the package."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table ``project`` of ``pyproject.toml``."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_every_allowed_python_is_named_and_tested(project: dict[str, Any]) -> None:
    """In the classifiers, and in the matrix of the workflow."""
    allowed = SpecifierSet(project["requires-python"])
    versions = [f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}.0")]
    named = [name.rpartition(" :: ")[2] for name in project["classifiers"] if "Python :: 3." in name]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert named == versions
    assert workflow["jobs"]["all"]["strategy"]["matrix"]["python"] == versions
    assert workflow["jobs"]["oldest"]["steps"][1]["with"]["python-version"] == versions[0]


def test_the_workflow_runs_what_is_there() -> None:
    """Scripts exist and can be started, and targets stand in the Makefile."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    commands = [step["run"].split() for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert [".ci/run"] in commands
    for program, *arguments in commands:
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, flags=re.MULTILINE)
        else:
            assert (ROOT / program).stat().st_mode & 0o111


def test_the_oldest_dependencies_are_the_bounds(project: dict[str, Any]) -> None:
    """Each lower bound becomes one constraint, also those of extras and of requirements that exclude releases."""
    printed = subprocess.run([ROOT / ".ci" / "oldest"], capture_output=True, text=True, check=True).stdout.split()
    constraints = dict(line.split("==") for line in printed)
    assert len(constraints) == len(printed)
    requirements = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    bounds = {
        requirement.name: specifier.version
        for requirement in map(Requirement, requirements)
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert bounds.items() <= constraints.items()


def test_commits_are_checked_as_make_lint_checks() -> None:
    """The same programs with the same checks."""
    target = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    checked = re.findall(r"\$\(BIN\)/([\w ]+?)(?: --check)?$", target, flags=re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks] == checked

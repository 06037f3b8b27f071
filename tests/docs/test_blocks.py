# SPDX-License-Identifier: Apache-2.0
"""Every block of code in README and documentation is what its language, its commands and their options allow.

Blocks that are marked as run are run by ``test_tutorials.py``.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from itertools import dropwhile
from pathlib import Path

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI

from ganomaly_plugin.compare.grid import read_grid
from ganomaly_plugin.edge import command as edge_command

from .pages import BLOCKS, PAGES, ROOT, Block

LANGUAGES = {"bash", "python", "toml", "yaml", ""}
"""What blocks may be written in; those without a language show files."""
UNCHECKED = {"cd", "export", "git", "pip", "pre-commit"}
"""Commands whose arguments are not looked at."""

Parse = Callable[[list[str]], object]


def of_language(language: str, *, run: bool = True) -> list[Block]:
    """Return the blocks of one language, also those that are run or not."""
    return [block for block in BLOCKS if block.language == language and (run or block.mark != "run")]


def split_commands(text: str) -> Iterator[list[str]]:
    """Return the commands of a shell block as words, without variables before them and without their folder."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            words = list(dropwhile(lambda word: "=" in word, shlex.split(command, comments=True)))
            if words:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@pytest.fixture(scope="module")
def parse_anomalib() -> Parse:
    """Read the arguments of anomalib's command as it does itself."""
    cli = AnomalibCLI.__new__(AnomalibCLI)  # Its constructor goes on to run them.
    cli.parser, cli.subcommand_parsers, cli.subcommand_method_arguments = cli.init_parser(exit_on_error=False), {}, {}
    cli.add_subcommands()
    return cli.parser.parse_args


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the pages' commands name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "config.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    (tmp_path / "my_comparison.yaml").write_text((ROOT / "configs" / "compare" / "digits.yaml").read_text())
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_fence_is_read(page: Path) -> None:
    """Each block has an end and a known language, and no mark stands alone."""
    text = page.read_text()
    blocks = [block for block in BLOCKS if block.page == page]
    assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(blocks)
    assert {block.language for block in blocks} <= LANGUAGES
    assert len(re.findall(r"<!-- (?:run|file: )", text)) == sum(bool(block.mark) for block in blocks)


@pytest.mark.parametrize("block", of_language("bash"), ids=str)
def test_shell_syntax(block: Block) -> None:
    """A shell can read it."""
    text = block.text.replace("<this repository>", "URL")
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("block", of_language("bash", run=False), ids=str)
def test_commands(block: Block, workplace: None, parse_anomalib: Parse) -> None:
    """Commands exist, and take these arguments."""
    for command, *arguments in split_commands(block.text.replace("<this repository>", "URL")):
        if command == "anomalib":
            parse_anomalib(arguments)
        elif command == "ganomaly-edge":
            edge_command._parser().parse_args(arguments)
        elif command == "make":
            makefile = (ROOT / "Makefile").read_text()
            targets = [word for word in arguments if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
        elif command == "python":
            check_python(arguments, parse_anomalib)
        else:
            assert command in UNCHECKED or (ROOT / command).is_file(), command


def check_python(arguments: list[str], parse_anomalib: Parse) -> None:
    """Check a script, a module or code that an interpreter is given."""
    if arguments[0] == "-c":
        ast.parse(arguments[1])
    elif arguments[:2] == ["-m", "ganomaly_plugin"]:
        parse_anomalib(arguments[2:])
    elif arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    else:
        assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("block", of_language("python"), ids=str)
def test_python(block: Block) -> None:
    """The code is right Python, and what it imports exists."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] != "my_module":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("block", of_language("yaml"), ids=str)
def test_yaml(block: Block, workplace: None) -> None:
    """A section for comparisons is a grid of trainings."""
    content = yaml.safe_load(block.text)
    if "compare" in content:
        assert read_grid(content["compare"]).runs


def test_a_wrong_option_is_found(workplace: None, parse_anomalib: Parse) -> None:
    """The test of commands can fail."""
    with pytest.raises(Exception, match="(?i)no_such_option|unrecognized|key"):
        parse_anomalib(["train", "--config", "configs/quickstart.yaml", "--model.no_such_option", "1"])
    with pytest.raises(SystemExit):
        edge_command._parser().parse_args(["predict", "model.xml", "images", "--no-such-option"])

# SPDX-License-Identifier: Apache-2.0
"""What the site shows besides the pages' own text: the help of the commands, and references in docstrings as names."""

import io
import os
import re
from contextlib import redirect_stdout, suppress
from typing import Any

from ganomaly_plugin.compare.pipeline import Compare
from ganomaly_plugin.edge.command import main

HELP = re.compile(r"<!-- help: (.+?) -->")
ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>(?:~[\w.]*\.(?=\w+</code>))?")
"""A reference in a docstring, as it looks in HTML; of a name with a tilde, the last part is shown."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a command's help where a page asks for it."""
    return HELP.sub(lambda found: f"```text\n{read_help(found[1]).strip()}\n```", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show references in docstrings as names."""
    return ROLE.sub("<code>", html)


def read_help(name: str) -> str:
    """Return what a command prints for ``--help``, 100 characters wide."""
    os.environ["COLUMNS"] = "100"
    if name == "anomalib compare":
        parser = Compare.get_parser()
        parser.prog = name
        return str(parser.format_help())
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        main([*name.split()[1:], "--help"])
    return printed.getvalue()

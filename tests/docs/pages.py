# SPDX-License-Identifier: Apache-2.0
"""The pages that users read, and the blocks of code in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

FENCE = re.compile(r"^(?:<!-- (run|file: [^\n]+?) -->\n\n)?```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code."""

    page: Path
    number: int
    mark: str
    """``run``: the tests run it. ``file: NAME``: they save it under this name. Otherwise empty: they only read it."""
    language: str
    text: str

    def __str__(self) -> str:
        """Name the block in the results of tests."""
        return f"{name(self.page)}-{self.number}"


def name(page: Path) -> str:
    """Name a page in the results of tests."""
    return str(page.relative_to(ROOT))


def find_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    found = FENCE.finditer(page.read_text())
    return [Block(page, number, mark or "", *rest) for number, (mark, *rest) in enumerate(f.groups() for f in found)]


BLOCKS = [block for page in PAGES for block in find_blocks(page)]

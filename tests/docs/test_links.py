# SPDX-License-Identifier: Apache-2.0
"""Links of README and documentation lead somewhere."""

import re
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, name

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as MkDocs and GitHub make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    """To a file in the repository and, on a page, to one of its headings, or elsewhere by https."""
    for link in LINK.findall(text_of(page)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if (ROOT / "docs") in page.parents:
            assert (ROOT / "docs") in target.parents, f"{link} is not part of the site"
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_navigation() -> None:
    """No page of the documentation can only be found by a link."""
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if (ROOT / "docs") in page.parents}
    assert set(re.findall(r"[\w/]+\.md", navigation)) == pages


def test_readme_is_short() -> None:
    """A newcomer reads it to the end."""
    assert (ROOT / "README.md").stat().st_size < 9_000

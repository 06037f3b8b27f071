# SPDX-License-Identifier: Apache-2.0
"""The pages that users read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.exists()]


def name(page: Path) -> str:
    """Name a page in the results of tests."""
    return str(page.relative_to(ROOT))

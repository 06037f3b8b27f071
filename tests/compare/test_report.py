# SPDX-License-Identifier: Apache-2.0
"""The report as a reader sees it: in a browser without a network, on a desk, on a phone and on paper."""

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ganomaly_plugin.compare.grid import read_grid

from .conftest import Compared

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def page(compared: Compared) -> "Iterator[Page]":
    """The report, opened from disk; whatever it complains of is in ``page.complaints``."""
    if CHROMIUM is None:
        pytest.skip("There is no Chromium here to open the report with.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page: Any = browser.new_context(offline=True).new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("requestfailed", lambda request: page.complaints.append(request.url))
        page.goto((compared.folder / "report.html").as_uri())
        yield page
        browser.close()


def test_opens_without_complaint_or_request(page: Any) -> None:
    """Nothing is loaded but the file itself, and the console stays empty."""
    assert page.complaints == []
    assert page.locator("h1").inner_text() == "Comparison of anomaly detectors"
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_links_lead_somewhere(page: "Page", compared: Compared) -> None:
    """To a place on the page, or to a file beside it."""
    targets = [link.get_attribute("href") or "" for link in page.locator("a").all()]
    assert len(targets) >= 8
    for target in targets:
        if target.startswith("#"):
            assert page.locator(target).count() == 1, target
        else:
            assert (compared.folder / target).exists(), target


def test_tables_sort(page: "Page") -> None:
    """A click on a column's head sorts by number, falling first, then rising."""
    table = page.locator("table.sortable", has_text="training, s").first
    head = table.locator("th", has_text="parameters")

    def column() -> list[int]:
        cells = table.locator("tbody tr td:nth-child(5)").all_inner_texts()
        return [int(text.replace(",", "")) for text in cells]

    head.click()
    assert column() == sorted(column(), reverse=True)
    head.click()
    assert column() == sorted(column())


def test_pictures_show(page: "Page") -> None:
    """The gallery's images decode, and the same of them stand in every row."""
    pictures = page.locator(".gallery img")
    assert pictures.count() > 20
    assert pictures.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
    rows = page.locator(".gallery tbody tr").all()
    assert {row.locator("td").count() for row in rows} == {page.locator(".gallery thead th").count() - 1}
    assert page.locator("figure svg").count() >= 3


def test_fits_a_phone(page: "Page") -> None:
    """Wide tables scroll within themselves, never the page."""
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_prints(page: "Page") -> None:
    """On paper, in some pages of PDF."""
    assert page.pdf().startswith(b"%PDF")


def test_configuration_reruns(page: "Page", compared: Compared) -> None:
    """What the page says to save is the comparison itself."""
    shown = yaml.safe_load(page.locator("pre").inner_text())
    assert read_grid(shown["compare"]).runs == compared.summary.grid.runs


def test_bold_needs_significance(compared: Compared) -> None:
    """A figure is bold where its difference to every other model excludes zero, and nowhere else."""
    summary = compared.summary
    bold = re.findall(r"\| (\w+) \|[^\n]*?\*\*", (compared.folder / "report.md").read_text())
    for model in ("GANomaly", "Padim"):
        leads = [metric for metric in summary.metrics("digits") if summary.leads("digits", model, metric)]
        assert (model in bold) == bool(leads)
    text = (compared.folder / "table.tex").read_text()
    assert text.count(r"\textbf") == sum(summary.leads("digits", model, "image_AUROC") for model in summary.grid.models)
    assert text.count(r"\\") == 4

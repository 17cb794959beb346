"""The page on a deployment keeps to what all pages keep to: quiet, whole in itself, as wide as the screen, readable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.pages.test_in_browser import CONTRAST
from tests.pages.test_page import Outline

from tersor.deploy.config import read_deployment
from tersor.deploy.gateway.reporting.rendering import page
from tersor.deploy.gateway.reporting.report import deployment_report

from .synthetic import NOW, deployed, served

if TYPE_CHECKING:
    from tests.pages.chromium import Chromium

LONG = "a-very-long-name-without-any-space-that-goes-on-and-on-until-64."


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A deployment that served, one with a long name, and one that never did."""
    made = {}
    for name in ("chat", LONG, "empty"):
        folder = tmp_path_factory.mktemp("pages")
        place = served(folder, name) if name != "empty" else deployed(folder)
        made[name] = folder / "r.html"
        text = page(deployment_report(read_deployment(place), f"deploy {name} <b>", NOW))
        assert Outline(text).text  # every element is closed
        made[name].write_text(text)
    return made


@pytest.mark.parametrize("name", ["chat", LONG, "empty"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_quiet_asks_for_nothing_and_fits(
    name: str, width: int, pages: dict[str, Path], browser: Chromium
) -> None:
    shown = browser.open(pages[name], width=width)
    assert shown.messages == ()
    assert len(shown.requests) == 1
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    ids = shown.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids)) > 5
    assert shown.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].every(a => document.querySelector(a.hash))")
    assert shown.evaluate("document.querySelectorAll('b, img').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(scheme: str, pages: dict[str, Path], browser: Chromium) -> None:
    assert browser.open(pages["chat"], scheme=scheme).evaluate(CONTRAST) == []

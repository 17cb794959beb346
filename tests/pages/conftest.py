"""One real browser for all tests that look at pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from .chromium import Chromium, Opened, find_chromium

Open: TypeAlias = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if find_chromium() is None:
        pytest.skip("no Chromium was found: apt-get install chromium")
    with Chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def show(browser: Chromium, tmp_path: Path) -> Open:
    """Open HTML text in the browser; keywords as for Chromium.open."""

    def opened(page: str, *, width: int = 1000, scheme: str = "light", media: str = "") -> Opened:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        return browser.open(path, width=width, scheme=scheme, media=media)

    return opened

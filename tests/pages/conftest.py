"""Pages in the browser of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from .chromium import Chromium, Opened

Open: TypeAlias = Callable[..., Opened]


@pytest.fixture
def show(browser: Chromium, tmp_path: Path) -> Open:
    """Open HTML text in the browser; keywords as for Chromium.open."""

    def opened(page: str, *, width: int = 1000, scheme: str = "light", media: str = "") -> Opened:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        return browser.open(path, width=width, scheme=scheme, media=media)

    return opened

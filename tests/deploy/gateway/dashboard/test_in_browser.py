"""The page in a real browser: live, within its policy, on a phone, by the keyboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..conftest import YAML, Live, live
from ..operating.orders import answered_by

if TYPE_CHECKING:
    from tests.pages.chromium import Chromium, Opened


@pytest.fixture(scope="module")
def gateway(deployed: Callable[[str], Path]) -> Iterator[Live]:
    with live(deployed(YAML + "# looked at\n")) as found:
        answered_by(found)
        yield found


def until(page: Opened, expression: str) -> None:
    """Wait until something is so on a page."""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_live_within_its_policy_and_fits(width: int, scheme: str, gateway: Live, browser: Chromium) -> None:
    page = browser.open(gateway.address, width=width, scheme=scheme)
    until(page, "document.getElementById('live').textContent.startsWith('Live')")
    until(page, "document.querySelectorAll('[id^=charts] canvas').length === 6")
    assert page.messages == ()  # what the policy forbids would be told here
    assert all(address.startswith((gateway.address, "data:")) for address in page.requests)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    small = "[...document.querySelectorAll('.button, nav a')].filter(e => e.getBoundingClientRect().height < 44).length"
    assert page.evaluate(small) == 0


def test_an_order_is_confirmed_in_a_dialog_and_shows_at_once(gateway: Live, browser: Chromium) -> None:
    page = browser.open(gateway.address, width=390)
    until(page, "document.getElementById('live').textContent.startsWith('Live')")
    page.evaluate("document.getElementById('act-0-rollback').click()")
    until(page, "ask.open && document.activeElement.id === 'why'")
    assert page.evaluate("ask.querySelector('form').reportValidity()") is False  # without a reason
    page.evaluate("why.value = '<img src=x onerror=document.title=1>'; ask.querySelector('button').click()")
    until(page, "ask.innerText.includes('done')")
    assert answered_by(gateway) == "full"
    until(page, "document.querySelector('[sse-swap=model-0]').innerText.includes('rolled back')")
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    page.evaluate("ask.querySelector('[data-close]').click()")
    assert page.evaluate("[ask.open, location.pathname]") == [False, "/"]

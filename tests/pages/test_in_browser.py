"""Pages in a real Chromium: quiet, self-sufficient, as wide as the screen, in light, dark and print."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tersor.core.card import Card
from tersor.pages import report_page

from .conftest import Open
from .synthetic import hostile, make_card

ONE = report_page([make_card()])
MANY = report_page([make_card(name, blocks=4) for name in ("q8_0", "q5_k", "q4_k", "q2_k")])
LONG = "a_very_long_name_without_any_space_" * 8
WIDE = replace(make_card(blocks=90), name=LONG, command=f"tersor quantize {LONG}")
PAGES = {
    "one": ONE,
    "many": MANY,
    "hostile": report_page([hostile("<script>alert(1)</script>")]),
    "wide": report_page([WIDE]),
}

VISIBLE_TEXT = """
[...document.querySelectorAll("svg[viewBox] text")].map(text => {
  const box = text.getBBox(), frame = text.ownerSVGElement.viewBox.baseVal;
  const turned = text.hasAttribute("transform");
  const right = box.x + box.width, bottom = box.y + box.height;
  const fits = box.x >= -1 && box.y >= -1 && right <= frame.width + 1 && bottom <= frame.height + 1;
  return turned || fits ? null : text.textContent;
}).filter(Boolean)
"""
# Luminance as WCAG 2 has it; the ground is that of the nearest ancestor that has one.
CONTRAST = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const shares = [0.2126, 0.7152, 0.0722];
  const light = color => shares.reduce((sum, share, i) => sum + share * linear(color[i] / 255), 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const judge = (node, color, below) => {
    const [a, b] = [light(color), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const what = `${node.tagName}.${node.getAttribute("class")} ${node.textContent.slice(0, 30)}`;
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${what}`);
  };
  const prose = "h1, h2, h3, p, li, dt, dd, th, td, a, caption, figcaption, summary, .badge, mark, code, strong, small";
  for (const node of document.querySelectorAll(prose))
    if (node.textContent.trim() && !node.closest("svg")) judge(node, parse(getComputedStyle(node).color), ground(node));
  for (const text of document.querySelectorAll("svg text")) {
    const shape = text.parentElement.matches("g") ? text.parentElement.querySelector(":scope > rect") : null;
    const below = shape ? parse(getComputedStyle(shape).fill) : ground(text.ownerSVGElement);
    judge(text, parse(getComputedStyle(text).fill), below);
  }
  return [...new Set(found)];
})()
"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_a_page_is_quiet_asks_for_nothing_and_fits_the_screen(show: Open, name: str, width: int) -> None:
    page = show(PAGES[name], width=width)
    assert page.messages == ()
    assert len(page.requests) == 1
    assert page.requests[0].startswith("file://")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.innerWidth") == width
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids)) > 5
    assert page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].every(a => document.querySelector(a.hash))")


@pytest.mark.parametrize("name", PAGES)
def test_no_text_of_a_chart_is_cut_off(show: Open, name: str) -> None:
    page = show(PAGES[name])
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true })")
    assert page.evaluate(VISIBLE_TEXT) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(show: Open, scheme: str) -> None:
    for html in (ONE, MANY):
        page = show(html, scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true })")
        assert page.evaluate(CONTRAST) == []


def test_light_and_dark_differ_and_print_is_light(show: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = show(ONE, scheme="light"), show(ONE, scheme="dark")
    grounds = [page.evaluate(ground) for page in (light, dark, show(ONE, scheme="dark", media="print"))]
    assert grounds == ["rgb(252, 252, 250)", "rgb(21, 24, 27)", "rgb(255, 255, 255)"]
    assert light.screenshot() != dark.screenshot()


def test_it_prints(show: Open) -> None:
    page = show(ONE)
    assert page.pdf().startswith(b"%PDF-")
    shown = show(ONE, width=700, media="print").evaluate(
        "['nav', '.skip', 'summary', '.folded'].map(s => getComputedStyle(document.querySelector(s)).display)"
    )
    assert shown == ["none"] * 4


def test_tables_sort_at_a_click_and_back(show: Open) -> None:
    page = show(ONE)
    column = (
        "[...document.querySelectorAll('#formats ~ .scroll tbody tr')].map(r => r.cells[2].dataset.value).map(Number)"
    )
    button = "document.querySelectorAll('#formats ~ .scroll th button')[2]"
    page.evaluate(f"{button}.click()")
    rising = page.evaluate(column)
    page.evaluate(f"{button}.click()")
    assert rising == sorted(rising)
    assert page.evaluate(column) == rising[::-1]
    assert page.evaluate(f"{button}.parentElement.getAttribute('aria-sort')") == "descending"


def test_a_script_in_a_name_does_not_run(show: Open) -> None:
    for name in (
        "<script>document.title='owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
        "</title><b>",
    ):
        page = show(report_page([hostile(name)]))
        assert page.evaluate("document.title").startswith(name)
        assert page.evaluate("document.querySelectorAll('script, img, b').length") == 1
        assert page.messages == ()
        assert len(page.requests) == 1


def test_a_card_with_nothing_measured_is_a_page_too(show: Open) -> None:
    bare: Card = make_card(is_measured=False)
    page = show(report_page([replace(bare, errors=(), source_bytes=0)]))
    assert page.messages == ()
    assert "Quality has not been measured yet" in page.evaluate("document.body.innerText")

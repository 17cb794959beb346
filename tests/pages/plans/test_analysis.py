"""The pages of an analysis and of a trade-off curve."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tersor.pages.heat_map import Words, heat_map
from tersor.pages.plans.analysis import Costs, Facts, analysis_page, tradeoff_page
from tersor.pages.tradeoff import Point

COSTS = [
    Costs(f"blk.{layer}.{kind}.weight", (8, 32), fmt, 100 + layer, kl * (1 + layer), 0.1, None, 0.05)
    for fmt, kl in (("q4_0", 1e-3), ("q8_0", 1e-5))
    for layer in (0, 1)
    for kind in ("attn_q", "<ffn>")
]
FACTS = Facts(
    "tiny <model>",
    "gptq",
    "text: 3 sequences",
    {"blk.0.attn_q.weight": {"largest": 1.5, "rms": 0.25, "input_peak": None}},
    [("4.00 bits per weight", "put together", 2e-3, 3e-3)],
)


def test_a_map_says_what_it_was_told_to_say() -> None:
    shares = {f"blk.{layer}.attn_q.weight": 0.25 * (1 + layer) for layer in (0, 1)}
    made = str(heat_map("m", shares, words=Words("Where it hurts", "share", "Shares of all.")))
    assert "Where it hurts" in made
    assert "share, %" in made
    assert "Shares of all." in made
    assert "The largest share is 50" in made


def test_an_analysis_shows_a_map_a_format_and_every_tensor() -> None:
    page = analysis_page(FACTS, COSTS)
    assert page.count("<svg") == 2
    assert "Where q4_0 hurts" in page
    assert "Where q8_0 hurts" in page
    assert "0.006 nats in all" in page
    assert "blk.1.attn_q.weight as q8_0" in page
    assert "1.50" in page
    assert "tiny &lt;model&gt;" in page
    assert "<ffn>" not in page
    ET.fromstring(page.split("\n", 1)[1])  # our own page: every tag is closed


def test_a_curve_draws_what_is_known() -> None:
    points = [Point(str(size), size, 1 / size) for size in (1000, 2000, 4000)]
    rows = [{"bits per weight": point.name, "file": "1 kB"} for point in points]
    assert tradeoff_page("m", rows, points, []).count("<svg") == 1
    assert tradeoff_page("m", rows, points, points).count("<svg") == 2

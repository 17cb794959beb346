"""Charts draw what the numbers say, and nothing where there is nothing to say."""

from __future__ import annotations

import math
import re

import pytest

from tersor.core.evaluation import Histogram, LayerError, Metric
from tersor.pages.charts import Segment, histogram_chart, noise_chart, share_bar, size_bars
from tersor.pages.heat_map import heat_map, place_of
from tersor.pages.tradeoff import Point, pareto, tradeoff_chart


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_bars_of_sizes_share_one_scale() -> None:
    chart = size_bars("s", 1000, 500, [Segment("q4_k", 400), Segment("f32", 100)])
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', chart) == [("0.000", "40.000"), ("40.000", "10.000")]
    assert re.findall(r'width="(\S+)%" height="22" class="original"', chart) == ["100.000"]
    assert "The original takes 1000 B. The artefact takes 500 B: q4_k 400 B; f32 100 B." in chart
    assert ">original" not in size_bars("s", 0, 500, [Segment("q4_k", 500)])


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    chart = histogram_chart("h", Histogram("kl", (0.0, 1e-4, 1e-3, 1e-2, 1e-1, math.inf), (10, 20, 40, 5, 0)), ())
    assert chart is not None
    heights = numbers(r'height="([\d.]+)" class="bar"', chart)
    assert [height / heights[2] for height in heights] == pytest.approx([0.25, 0.5, 1.0, 0.125], abs=0.01)
    widths = numbers(r'width="([\d.]+)" height="[\d.]+" class="bar"', chart)
    assert max(widths) - min(widths) < 0.1


def test_marks_stand_at_their_values_and_do_not_cover_each_other() -> None:
    histogram = Histogram("kl", (1e-4, 1e-3, 1e-2, 1e-1), (1, 2, 3))
    metrics = [Metric(name, value) for name, value in (("kl_median", 0.001), ("kl_mean", 0.0011), ("kl_p99", 0.1))]
    chart = histogram_chart("h", histogram, metrics)
    assert chart is not None
    places = numbers(r'<line x1="([\d.]+)"[^>]*class="mark"', chart)
    left, right = 70.0, 744.0
    assert places[0] == pytest.approx(left + (right - left) / 3, abs=0.1)
    assert places[2] == right
    rows = numbers(r'y="([\d.]+)" class="label middle halo"', chart)
    assert len(set(rows[:2])) == 2


@pytest.mark.parametrize("histogram", [Histogram("x", (0.0, 1.0), (0,)), Histogram("x", (1.0,), ())])
def test_an_empty_histogram_is_left_out(histogram: Histogram) -> None:
    assert histogram_chart("h", histogram, ()) is None


def test_a_map_of_errors_has_a_cell_for_each_tensor_and_marks_faults() -> None:
    errors = {f"blk.{block}.attn_q.weight": 0.011 * (block + 1) for block in range(3)}
    errors |= {f"blk.{block}.attn_norm.weight": 0.0 for block in range(3)} | {"output.weight": 0.5}
    chart = heat_map("m", errors, ["blk.1.attn_q.weight"])
    assert chart is not None
    assert re.findall(r'class="cell ink\d">([^<]+)<', chart) == ["1.1", "!2.2", "3.3"]
    assert re.findall(r'class="heat(\d)" /><text', chart) == ["2", "4", "6"]
    assert "The largest error is 3.3 %, of blk.2.attn_q.weight." in chart
    assert "left out here: attn_norm." in chart
    assert heat_map("m", {"blk.0.attn_q.weight": 0.1}) is None
    assert heat_map("m", {}) is None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.7.mlp.up.weight", (7, "model.layers mlp.up")),
        ("0.weight", (0, "weight")),
        ("conv.weight", None),
        ("blk.99999999999.x", None),
    ],
)
def test_blocks_are_found_in_names_of_any_model(name: str, place: tuple[int, str] | None) -> None:
    assert place_of(name) == place


def test_noise_is_drawn_where_it_was_measured() -> None:
    rows = [LayerError(f"blk.{i}", "block", i, 20.0, 1.0, 1.0, None, 30.0 - i, 25.0 - 2 * i) for i in range(4)]
    chart = noise_chart("n", [*rows, LayerError("output", "output", None, 20.0, 1.0, 1.0)])
    assert chart is not None
    lines = re.findall(r'<polyline points="([^"]+)"', chart)
    assert [len(line.split()) for line in lines] == [4, 4]
    heights = [float(point.split(",")[1]) for point in lines[0].split()]
    assert heights == sorted(heights)
    assert "Noise that enters here: first 30.0 dB, worst 27.0 dB, last 27.0 dB." in chart
    assert noise_chart("n", rows[:1]) is None


@pytest.mark.parametrize(("share", "width"), [(0.5, "30"), (1.7, "60"), (-1.0, "0"), (math.nan, "0")])
def test_a_share_fills_its_bar(share: float, width: str) -> None:
    assert f'width="{width}" height="8" class="bar"' in share_bar(share)


def test_the_front_holds_those_that_no_other_beats() -> None:
    points = [Point("a", 1, 0.9), Point("b", 2, 0.5), Point("c", 3, 0.6), Point("d", 4, 0.1), Point("e", 4, 0.2)]
    assert [point.name for point in pareto(points, is_higher_better=False)] == ["a", "b", "d"]
    assert [point.name for point in pareto(points, is_higher_better=True)] == ["a"]
    assert [p.name for p in pareto([Point("x", 1, 1.0), Point("y", 1, 1.0)], is_higher_better=False)] == ["x"]


def test_a_trade_off_marks_front_and_intervals() -> None:
    points = [Point("a", 2**20, 0.9, 0.8, 1.0), Point("b", 2**21, 0.5), Point("c", 3 * 2**20, 0.6)]
    chart = tradeoff_chart("t", "Size against KL", "KL", points)
    assert chart is not None
    assert re.findall(r'class="(best|beaten)"', chart) == ["best", "best", "beaten"]
    assert chart.count('class="whisker"') == 1
    assert "size (MiB)" in chart
    assert "No other is better in both: a, b." in chart
    assert tradeoff_chart("t", "t", "y", points[:1]) is None
    assert tradeoff_chart("t", "t", "y", [points[0], Point("n", 5, math.nan)]) is None

"""Charts of one artefact: where its bytes went, how divergence spreads over tokens, how noise grows layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tersor.core.evaluation import Histogram, LayerError, Metric
from tersor.core.quantities import amount, decibels, number, percent, size, title
from tersor.pages.axes import Frame, axes, clip, figure, text_width
from tersor.pages.markup import Markup, join, tag
from tersor.pages.scales import Scale, finite, linear_scale, log_scale

__all__ = ["Segment", "histogram_chart", "noise_chart", "share_bar", "size_bars"]

SHADES = 6
LABELLED_SHARE = 0.14
"""Narrower segments have no room for a name."""
MARKED = ("kl_median", "kl_mean", "kl_p99")
WIDE = 760.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the artefact's bytes."""

    name: str
    nbytes: int


def size_bars(name: str, before: int, after: int, segments: Sequence[Segment]) -> Markup:
    """Return two bars on one scale: the original (none where its size is 0) and the artefact, cut by format.

    Widths are percentages, so that the text keeps its size on any screen.
    """
    full = max(before, after, 1)
    parts: list[Markup] = []
    top = 0.0
    if before:
        parts.append(_bar_title("original", size(before), top))
        parts.append(tag("rect", x="0%", y=top + 20, width=_share(before, full), height=22.0, class_="original"))
        top += 58
    parts.append(_bar_title("quantized", size(after), top))
    start = 0
    for index, segment in enumerate(segments):
        share = segment.nbytes / full
        spot = {"x": _share(start, full), "width": _share(segment.nbytes, full)}
        tip = tag("title", f"{segment.name}: {size(segment.nbytes)}")
        bar = tag("rect", y=top + 20, height=22.0, class_=f"shade{min(index, SHADES - 1)}", **spot)
        label = None
        if share >= LABELLED_SHARE:
            middle = _share(start + segment.nbytes / 2, full)
            shade = f"on{min(index, SHADES - 1)} middle"
            label = tag("text", clip(segment.name, 8), x=middle, y=top + 35.5, class_=shade)
        parts.append(tag("g", tip, bar, label))
        start += segment.nbytes
    said = "; ".join(f"{segment.name} {size(segment.nbytes)}" for segment in segments)
    told = f"The original takes {size(before)}. " if before else ""
    svg = tag(
        "svg",
        tag("title", "Size against the original", id=f"{name}-title"),
        tag("desc", f"{told}The artefact takes {size(after)}: {said}.", id=f"{name}-desc"),
        *parts,
        width="100%",
        height=f"{top + 44:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
    keys = [
        tag("li", tag("span", class_=f"key shade{min(i, SHADES - 1)}"), f"{s.name} {size(s.nbytes)}")
        for i, s in enumerate(segments)
    ]
    return tag("figure", svg, tag("figcaption", tag("ul", *keys, class_="keys")), class_="chart")


def _bar_title(name: str, text: str, top: float) -> Markup:
    return tag("text", tag("tspan", name, class_="soft"), f"  {text}", x="0", y=top + 13, class_="label")


def _share(part: float, whole: float) -> str:
    return f"{min(part / whole, 1.0) * 100:.3f}%"


def histogram_chart(name: str, histogram: Histogram, metrics: Sequence[Metric]) -> Markup | None:
    """Return the distribution of a histogram, with median, mean and 99th percentile marked; None where it is empty.

    Edges that span decades stand on a logarithmic axis: what lies at 0 is drawn in the first bin, below its upper edge.
    """
    edges, counts = list(histogram.edges), list(histogram.counts)
    while counts and not counts[-1]:
        counts, edges = counts[:-1], edges[:-1]
    while counts and not counts[0]:
        counts, edges = counts[1:], edges[1:]
    inner = finite(edges)
    total = sum(counts)
    if not total or len(inner) < 2:
        return None
    is_log = inner[0] >= 0 and inner[-1] > 100 * next((edge for edge in inner if edge > 0), inner[-1])
    edges = _closed(edges, is_log)
    frame = Frame(WIDE, 270, top=50)
    make = log_scale if is_log else linear_scale
    x = make(edges, *frame.x_range)
    y = linear_scale([0, max(counts)], *frame.y_range, count=4, zero=True)
    unit = _unit(metrics)
    grid = axes(
        frame, x, y, x_title=f"{title(histogram.name)}{unit}", y_title="count", x_format=number, y_format=_count
    )
    bars = [
        _bar((x(low), x(high), y(count), y.begin), f"{number(low, 3)} … {number(high, 3)}: {count:,} of {total:,}")
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    marks = _marks(frame, x, metrics)
    description = f"{total:,} values; the largest bin holds {max(counts):,}."
    description += "".join(f" {title(m.name)} {amount(m, m.value)}." for m in metrics if m.name in MARKED)
    name_of_chart = f"Distribution of {title(histogram.name)}"
    return figure(name, name_of_chart, description, join([grid, *bars, marks]), frame, caption=f"{name_of_chart}.")


def _closed(edges: list[float], is_log: bool) -> list[float]:
    """Replace 0 and infinity at the ends, which no axis reaches, by one more bin of usual width."""
    closed = list(edges)
    known = [edge for edge in finite(edges) if edge > 0 or not is_log]
    if len(known) < 2:
        return closed
    step = known[-1] / known[-2] if is_log else known[-1] - known[-2]
    if (is_log and closed[0] <= 0) or not math.isfinite(closed[0]):
        closed[0] = known[0] / step if is_log else known[0] - step
    if not math.isfinite(closed[-1]):
        closed[-1] = known[-1] * step if is_log else known[-1] + step
    return closed


def _bar(edges: tuple[float, float, float, float], tip: str) -> Markup:
    left, right, top, bottom = edges
    width, height = max(right - left - 1, 0.8), max(bottom - top, 0.8)
    return tag(
        "g", tag("title", tip), tag("rect", x=left + 0.5, y=bottom - height, width=width, height=height, class_="bar")
    )


def _marks(frame: Frame, x: Scale, metrics: Sequence[Metric]) -> Markup:
    """Return a line and a name for each marked metric, the names on as many rows as keep them apart."""
    ends: list[float] = []
    parts = []
    found = sorted((m for m in metrics if m.name in MARKED and finite([m.value])), key=lambda metric: metric.value)
    for metric in found:
        if x.is_log and metric.value <= 0:
            continue
        place, label = x(metric.value), f"{title(metric.name).rpartition(', ')[2]} {number(metric.value, 3)}"
        half = text_width(label) / 2
        center = min(max(place, frame.left + half), frame.width - half - 2)
        row = next((index for index, end in enumerate(ends) if center - half > end + 8), len(ends))
        ends[row : row + 1] = [center + half]
        height = 14 + 15.0 * row
        parts.append(tag("line", x1=place, x2=place, y1=height + 4, y2=frame.y_range[0], class_="mark"))
        parts.append(tag("text", label, x=center, y=height, class_="label middle halo"))
    return join(parts)


def _unit(metrics: Sequence[Metric]) -> str:
    unit = next((metric.unit for metric in metrics if metric.name in MARKED and metric.unit), "")
    return f" ({unit})" if unit else ""


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def noise_chart(name: str, layers: Sequence[LayerError]) -> Markup | None:
    """Return SQNR along the computation: what each place adds alone, and what has arrived there; None for under two."""
    rows = [row for row in layers if finite([row.entering_db]) or finite([row.arriving_db])]
    if len(rows) < 2:
        return None
    lines = {
        "enters here": [row.entering_db for row in rows],
        "has arrived": [row.arriving_db for row in rows],
    }
    frame = Frame(WIDE, 300, right=100)
    left, right = frame.x_range
    places = [left + (right - left) * (index + 0.5) / len(rows) for index in range(len(rows))]
    y = linear_scale([value for values in lines.values() for value in values], *frame.y_range)
    grid = axes(frame, None, y, x_title="place in the computation", y_title="SQNR (dB)", y_format=number)
    ticks = _place_names(frame, [row.name for row in rows], places)
    names = [row.name for row in rows]
    ends: list[float] = []
    drawn = []
    for index, (label, values) in enumerate(lines.items()):
        known = [point for point in zip(places, values, names, strict=True) if finite([point[1]])]
        points = [
            (place, y(value or 0.0), f"{name}: noise that {label}: {decibels(value)}") for place, value, name in known
        ]
        drawn.append(_noise_line(index, label, points, ends))
    description = " ".join(
        f"Noise that {label}: first {decibels(found[0])}, worst {decibels(min(found))}, last {decibels(found[-1])}."
        for label, values in lines.items()
        if (found := finite(values))
    )
    caption = (
        "Signal to quantization noise; higher is better. Dots, solid: noise that enters at this place alone, on "
        "full-precision input. Squares, dashed: noise that has arrived there with everything before it quantized too."
    )
    heading = "Where the error enters and where it has grown to"
    return figure(name, heading, description, join([grid, ticks, *drawn]), frame, caption=caption)


def _place_names(frame: Frame, names: Sequence[str], places: Sequence[float]) -> Markup:
    """Return as many names below the axis as have room."""
    shown = [clip(name, 14) for name in names]
    bottom, room = frame.y_range[0], (frame.x_range[1] - frame.x_range[0]) / len(names)
    stride = max(1, math.ceil((max(map(text_width, shown)) + 8) / room))
    parts = []
    for index in range(0, len(names), stride):
        parts.append(tag("line", x1=places[index], x2=places[index], y1=bottom, y2=bottom + 5, class_="axis"))
        parts.append(tag("text", shown[index], x=places[index], y=bottom + 19, class_="tick middle"))
    return join(parts)


def _noise_line(index: int, label: str, points: Sequence[tuple[float, float, str]], ends: list[float]) -> Markup | None:
    """Return a line through `points` (x, y, tip) with its label at the right; `ends` are the labels' heights so far."""
    if not points:
        return None
    line = tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points), class_=f"line{index}")
    dots = []
    for x, y, tip in points:
        square = tag("rect", x=x - 3, y=y - 3, width=6.0, height=6.0, class_="dot1")
        dots.append(tag("g", tag("title", tip), square if index else tag("circle", cx=x, cy=y, r=3.2, class_="dot0")))
    height = points[-1][1]
    while any(abs(height - other) < 15 for other in ends):
        height += 15
    ends.append(height)
    return join([line, *dots, tag("text", label, x=points[-1][0] + 10, y=height + 4, class_=f"label series{index}")])


def share_bar(share: float) -> Markup:
    """Return a small bar that is filled to `share` of one; the number stands beside it in words."""
    filled = min(max(share, 0.0), 1.0) * 60 if math.isfinite(share) else 0.0
    return tag(
        "svg",
        tag("rect", x="0", y="0", width="60", height="8", class_="original"),
        tag("rect", x="0", y="0", width=filled, height="8", class_="bar"),
        viewBox="0 0 60 8",
        class_="share",
        role="img",
        aria_label=percent(share),
    )

"""Several artefacts of one model: size against quality or speed, with those that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tersor.core.quantities import number, percent, size
from tersor.pages.axes import Frame, axes, clip, figure, text_width
from tersor.pages.markup import Markup, join, tag
from tersor.pages.scales import Scale, finite, linear_scale, log_scale

__all__ = ["Point", "pareto", "tradeoff_chart"]

LOG_FROM = 12.0
"""A ratio of the largest to the smallest value from which on a logarithmic axis reads better."""
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One artefact: its bytes, its value on the other axis and the interval of that."""

    name: str
    nbytes: int
    value: float
    low: float | None = None
    high: float | None = None


def pareto(points: Sequence[Point], *, is_higher_better: bool) -> list[Point]:
    """Return the points that no other beats: smaller and at least as good, or better and at most as large; by size.

    >>> small, good, bad = Point("s", 1, 0.5), Point("g", 2, 0.1), Point("b", 3, 0.3)
    >>> [point.name for point in pareto([bad, good, small], is_higher_better=False)]
    ['s', 'g']
    """
    sign = -1.0 if is_higher_better else 1.0
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.nbytes, sign * point.value)):
        if not front or sign * point.value < sign * front[-1].value:
            front.append(point)
    return front


def tradeoff_chart(
    name: str,
    title: str,
    y_title: str,
    points: Sequence[Point],
    *,
    is_higher_better: bool = False,
    is_share: bool = False,
) -> Markup | None:
    """Return size against a value; None where fewer than two artefacts have it. Shares of one stand as percentages."""
    known = [point for point in points if finite([point.value])]
    if len(known) < 2:
        return None
    frame = Frame(420, 320, left=78, right=18)
    unit, scale = next((u, s) for u, s in UNITS if max(point.nbytes for point in known) >= s or s == 1)
    x = linear_scale([point.nbytes / scale for point in known], *frame.x_range, count=5)
    values = [value for point in known for value in finite([point.value, point.low, point.high])]
    least = min(point.value for point in known)
    is_log = least > 0 and max(values) > LOG_FROM * least
    held = [max(value, least / 2) for value in values] if is_log else values
    y = (log_scale if is_log else linear_scale)(held, *frame.y_range)
    better = "higher is better" if is_higher_better else "lower is better"
    grid = axes(
        frame,
        x,
        y,
        x_title=f"size ({unit})",
        y_title=f"{y_title}; {better}",
        x_format=number,
        y_format=percent if is_share else _compact,
    )
    front = pareto(known, is_higher_better=is_higher_better)
    places = {id(point): (x(point.nbytes / scale), y(point.value)) for point in known}
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (places[id(point)] for point in front))
    line = tag("polyline", points=path, class_="front")
    dots = [_dot(point, places[id(point)], y, is_best=point in front) for point in known]
    bars = [
        (place[0] - 4, y(point.high), place[0] + 4, y(point.low))
        for point, place in zip(known, places.values(), strict=True)
        if point.low is not None and point.high is not None and len(finite([point.low, point.high])) == 2
    ]
    taken = [*bars, *_along([places[id(point)] for point in front])]
    labels = _labels(frame, known, list(places.values()), taken)
    description = "; ".join(f"{point.name}: {size(point.nbytes)}, {number(point.value)}" for point in known)
    description += f". No other is better in both: {', '.join(point.name for point in front)}."
    return figure(name, title, description, join([grid, line, *dots, labels]), frame, caption=title, kind="small")


def _compact(value: float) -> str:
    return number(value, 3)


def _dot(point: Point, place: tuple[float, float], y: Scale, *, is_best: bool) -> Markup:
    x, height = place
    parts = [tag("title", f"{point.name}: {size(point.nbytes)}, {number(point.value)}")]
    if point.low is not None and point.high is not None and len(finite([point.low, point.high])) == 2:
        low, high = y(point.low), y(point.high)
        parts.append(tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8",
                         class_="whisker"))  # fmt: skip
    parts.append(tag("circle", cx=x, cy=height, r=5.0, class_="best" if is_best else "beaten"))
    return tag("g", *parts)


def _labels(
    frame: Frame, points: Sequence[Point], places: Sequence[tuple[float, float]], drawn: Sequence[Box]
) -> Markup:
    """Return the name of each point beside it, where it covers no other name, no point and nothing `drawn`."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places] + list(drawn)
    parts = []
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda pair: pair[1]):
        shown = clip(point.name, 20)
        width = text_width(shown)
        spots = [(x + 10, y + 4), (x - 10 - width, y + 4), (x - width / 2, y - 12), (x - width / 2, y + 22)]
        spots += [(x + 9, y - 9), (x + 9, y + 18), (x - 9 - width, y - 9), (x - 9 - width, y + 18)]
        spots += [(x - width / 2, y - 28), (x - width / 2, y + 36)]
        boxes = [(left, base - 11, left + width, base + 3) for left, base in spots]
        inside = [
            box for box in boxes if box[0] > frame.left and box[2] < frame.width and 0 < box[1] < frame.y_range[0] - 12
        ]
        free = [box for box in inside if not any(_touch(box, other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        parts.append(tag("text", shown, x=box[0], y=box[1] + 11, class_="label halo"))
    return join(parts)


def _along(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Return small boxes that cover a line through `corners`."""
    boxes = []
    for (x, y), (right, end) in pairwise(corners):
        steps = max(1, math.ceil(max(abs(right - x), abs(end - y)) / 3))
        for step in range(steps + 1):
            a, b = x + (right - x) * step / steps, y + (end - y) * step / steps
            boxes.append((a - 1, b - 1, a + 1, b + 1))
    return boxes


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

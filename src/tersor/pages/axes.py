"""What every chart is made in: the frame with its axes, the accessible wrapper, text that is measured and clipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tersor.pages.markup import Markup, join, tag
from tersor.pages.scales import Scale

__all__ = ["Frame", "axes", "clip", "figure", "text_width"]

CHARACTER = 0.56
"""Mean width of a character of a sans-serif font in units of its size."""
TEXT = 12.5
"""Size of the text in charts, in user units."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A chart of `width` × `height` user units, and the room that its axes take on each side."""

    width: float
    height: float
    left: float = 70
    right: float = 16
    top: float = 14
    bottom: float = 46

    @property
    def x_range(self) -> tuple[float, float]:
        """Left and right edge of the plot."""
        return self.left, self.width - self.right

    @property
    def y_range(self) -> tuple[float, float]:
        """Bottom and top edge of the plot: values grow upwards."""
        return self.height - self.bottom, self.top


def figure(
    name: str, title: str, description: str, body: Markup, frame: Frame, *, caption: str = "", kind: str = "wide"
) -> Markup:
    """Return a chart with its title for all, its description for those who do not see it, and a visible caption.

    name  unique in the page; the ids of title and description are made from it
    kind  class of the figure: "wide" charts scroll on a narrow screen, "small" ones shrink
    """
    svg = tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        body,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
    around = {"tabindex": "0", "role": "region", "aria_label": f"{title}, scrollable"} if kind == "wide" else {}
    scroll = tag("div", svg, class_="scroll", **around)
    return tag("figure", scroll, tag("figcaption", caption) if caption else None, class_=f"chart {kind}")


def axes(
    frame: Frame,
    x: Scale | None,
    y: Scale,
    *,
    x_title: str,
    y_title: str,
    x_format: Callable[[float], str] = str,
    y_format: Callable[[float], str] = str,
) -> Markup:
    """Return grid, ticks and titles; `x` None leaves the ticks below to the chart."""
    (left, right), (bottom, top) = frame.x_range, frame.y_range
    parts = []
    for value in y.ticks:
        place = y(value)
        parts.append(tag("line", x1=left, x2=right, y1=place, y2=place, class_="grid"))
        parts.append(tag("text", y_format(value), x=left - 8, y=place + 4, class_="tick end"))
    ticks = x.ticks if x else ()
    labels = [(value, x_format(value)) for value in ticks]
    for value, label in _thinned(labels, right - left):
        place = x(value) if x else left
        parts.append(tag("line", x1=place, x2=place, y1=bottom, y2=bottom + 5, class_="axis"))
        parts.append(tag("text", label, x=place, y=bottom + 19, class_="tick middle"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", x_title, x=(left + right) / 2, y=frame.height - 6, class_="axis-title middle"))
    middle = (bottom + top) / 2
    turned = f"translate(12 {middle:g}) rotate(-90)"
    parts.append(tag("text", y_title, transform=turned, class_="axis-title middle"))
    return join(parts)


def clip(text: str, characters: int) -> str:
    """Shorten `text` in its middle: names differ at both ends.

    >>> clip("blk.17.attn_output.weight", 13)
    'blk.17…weight'
    """
    if len(text) <= characters:
        return text
    kept = characters - 1
    return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"


def text_width(text: str) -> float:
    """Return about how wide `text` is in a chart, in user units."""
    return len(text) * CHARACTER * TEXT


def _thinned(labels: list[tuple[float, str]], room: float) -> list[tuple[float, str]]:
    """Leave out every second label until those that are left do not touch."""
    while len(labels) > 2 and sum(text_width(label) + 14 for _, label in labels) > room:
        labels = labels[::2]
    return labels

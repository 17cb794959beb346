"""Error by layer: a map of blocks × kinds of tensor, with the numbers in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tersor.core.quantities import percent
from tersor.pages.axes import Frame, clip, figure, text_width
from tersor.pages.markup import Markup, join, tag
from tersor.pages.scales import finite

__all__ = ["Words", "heat_map", "place_of"]

BINS = 7
STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
WIDE = 760.0
ROW = 24.0
WIDEST_CELL = 84.0
NUMBERED = 27.0
"""Cells narrower than this have no room for a number; it is in their tooltip and in the table of every tensor."""
_BLOCK = re.compile(r"^(.*?)(?:^|\.)(\d{1,6})\.(.+)$", re.ASCII)


def place_of(name: str) -> tuple[int, str] | None:
    """Return block and kind of a tensor by its name, None for one outside the blocks.

    >>> place_of("blk.3.attn_q.weight"), place_of("layer1.0.conv2.weight"), place_of("token_embd.weight")
    ((3, 'attn_q'), (0, 'layer1 conv2'), None)
    """
    match = _BLOCK.match(name)
    if match is None:
        return None
    before, block, kind = match.groups()
    prefix = "" if before in ("blk", "") else f"{before} "
    return int(block), prefix + kind.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class Words:
    """What a map says it shows: values are shares of one, printed in percent."""

    title: str = "Error by layer"
    measure: str = "error"
    caption: str = "Relative error of each tensor from rounding its weights: rms of the error over rms of the weights."


def heat_map(
    name: str, errors: Mapping[str, float], marked: Sequence[str] = (), words: Words = Words()
) -> Markup | None:
    """Return the map of relative errors (or what `words` call them) by tensor; None where no two blocks have one.

    Kinds that are exact everywhere are left out. `marked` tensors, those with a fault, carry an exclamation mark.
    """
    cells: dict[tuple[int, str], tuple[str, float]] = {}
    for tensor, error in errors.items():
        place = place_of(tensor)
        if place is not None and finite([error]):
            cells[place] = (tensor, error)
    exact = {kind for _, kind in cells} - {kind for (_, kind), (_, error) in cells.items() if error}
    kinds = list(dict.fromkeys(kind for _, kind in cells if kind not in exact))
    blocks = sorted({block for block, kind in cells if kind not in exact})
    if len(blocks) < 2:
        return None
    left = min(max(text_width(clip(kind, 22)) for kind in kinds) + 14, 200.0)
    column = min((WIDE - left - 4) / len(blocks), WIDEST_CELL)
    frame = Frame(WIDE, ROW * len(kinds) + 72, left=left)
    largest = _round_end(max(error for _, error in cells.values()))
    parts = []
    for row, kind in enumerate(kinds):
        parts.append(tag("text", clip(kind, 22), x=left - 8, y=row * ROW + 16.5, class_="tick end"))
        for index, block in enumerate(blocks):
            if (block, kind) in cells:
                tensor, error = cells[block, kind]
                spot = (left + index * column, row * ROW, column)
                parts.append(_cell(spot, tensor, error, largest, is_marked=tensor in marked))
    below = len(kinds) * ROW
    stride = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**6) if column * n >= 24)
    for index, block in enumerate(blocks):
        if index % stride == 0:
            x = left + (index + 0.5) * column
            parts.append(tag("text", str(block), x=x, y=below + 16, class_="tick middle"))
    parts.append(tag("text", "block", x=left - 8, y=below + 16, class_="axis-title end"))
    parts.append(_legend(left, below + 34, largest, words.measure))
    worst, most = max(cells.values(), key=lambda cell: cell[1])
    counted = f"{len(blocks)} blocks, {len(kinds)} kinds of tensor"
    description = f"{counted}. The largest {words.measure} is {percent(most)}, of {worst}."
    caption = words.caption
    if exact:
        caption += f" Kept exactly, and left out here: {', '.join(sorted(clip(kind, 40) for kind in exact)[:12])}."
    return figure(name, words.title, description, join(parts), frame, caption=caption, kind="wide")


def shade_of(error: float, largest: float) -> int:
    """Return which of the BINS equal parts of 0 … largest an error lies in."""
    return int(min(max(error / largest * BINS, 0), BINS - 1)) if largest > 0 else 0


def _round_end(largest: float) -> float:
    """Return the least value that is not below `largest` and whose parts have round borders."""
    part = largest / BINS
    power = 10.0 ** math.floor(math.log10(part)) if part > 0 else 1.0
    return BINS * next((step * power for step in STEPS if step * power >= part), 10 * power)


def _cell(spot: tuple[float, float, float], tensor: str, error: float, largest: float, *, is_marked: bool) -> Markup:
    x, y, width = spot
    shade = shade_of(error, largest)
    shape = tag("rect", x=x + 0.75, y=y + 0.75, width=width - 1.5, height=ROW - 1.5, rx="2", class_=f"heat{shade}")
    label = None
    if width >= NUMBERED or is_marked:
        shown = f"{error * 100:.1f}" if error < 0.9995 else f"{error * 100:.0f}"
        shown = "!" * is_marked + shown * (width >= NUMBERED)
        label = tag("text", shown, x=x + width / 2, y=y + 16, class_=f"cell ink{shade}")
    tip = f"{tensor}: {percent(error)}" + ", a fault was found here" * is_marked
    return tag("g", tag("title", tip), shape, label)


def _legend(left: float, top: float, largest: float, measure: str) -> Markup:
    """Return the shades from small to large, with the errors at their borders."""
    step = 46.0
    borders = [largest * index / BINS for index in range(BINS + 1)]
    parts = [tag("text", f"{measure}, %", x=left - 8, y=top + 9, class_="axis-title end")]
    for index, (low, high) in enumerate(pairwise(borders)):
        tip = tag("title", f"{percent(low)} … {percent(high)}")
        shape = tag("rect", x=left + index * step, y=top, width=step, height=10.0, class_=f"heat{index}")
        parts.append(tag("g", tip, shape))
    for index, border in enumerate(borders):
        anchor = "middle" if index else "start"
        parts.append(tag("text", f"{border * 100:.3g}", x=left + index * step, y=top + 24, class_=f"tick {anchor}"))
    return join(parts)

"""The pages of an analysis and of a trade-off curve: heat maps, checks, and every tensor in every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tersor.core.quantities import number, percent, size
from tersor.pages.document import document, header, main
from tersor.pages.heat_map import Words, heat_map
from tersor.pages.markup import Markup, join, tag
from tersor.pages.tables import table
from tersor.pages.tradeoff import Point, tradeoff_chart

__all__ = ["Costs", "Facts", "analysis_page", "tradeoff_page"]

MAPS = 4
"""Formats that have a heat map of their own, spread over those there are."""


@dataclass(frozen=True, slots=True)
class Costs:
    """One tensor in one format; divergence in nats per token, errors relative, None where they are not known."""

    tensor: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    kl: float
    weight: float
    importance: float | None
    output: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What heads an analysis.

    ranges  tensor → figures by name
    checks  what was estimated and then measured: name, how, nats twice
    """

    model: str
    method: str
    calibration: str
    ranges: Mapping[str, Mapping[str, float | None]]
    checks: Sequence[tuple[str, str, float, float]]


def analysis_page(facts: Facts, costs: Sequence[Costs]) -> str:
    """Return the analysis as a whole HTML document."""
    by_format: dict[str, dict[str, float]] = {}
    for one in costs:
        by_format.setdefault(one.format, {})[one.tensor] = one.kl
    content = main(
        tag("section", tag("h2", "Where bits matter", id="maps"), *_maps(by_format), aria_labelledby="maps"),
        _section("checks", "Estimates against measurements", _checks(facts)),
        _section("ranges", "Ranges and outliers", _ranges(facts)),
        _section("tensors", "Every tensor in every format", _every(costs)),
    )
    links = [("#maps", "Maps"), ("#checks", "Checks"), ("#ranges", "Ranges"), ("#tensors", "Every tensor")]
    top = header(tag("span", f"Sensitivity of {facts.model}"), f"rounded by {facts.method}; {facts.calibration}", links)
    return document(f"Sensitivity of {facts.model}", join([top, content]))


def tradeoff_page(
    model: str, rows: Sequence[Mapping[str, str]], points: Sequence[Point], others: Sequence[Point]
) -> str:
    """Return a trade-off curve as a whole HTML document.

    points, others  predicted divergences of the best mixes, and measured ones
    """
    charts = [
        tradeoff_chart("predicted", "Size against predicted divergence", "divergence (nats)", points),
        tradeoff_chart("measured", "Size against measured divergence", "divergence (nats)", others),
    ]
    keys = list(rows[0])
    every = table(
        "The best mix of each size", [keys[0], *(f">{key}" for key in keys[1:])], [list(r.values()) for r in rows]
    )
    content = main(
        _section("curve", "Curve", join([chart for chart in charts if chart])), _section("sizes", "Sizes", every)
    )
    top = header(
        tag("span", f"What bits buy in {model}"), "the best mix of formats of each size", [("#curve", "Curve")]
    )
    return document(f"What bits buy in {model}", join([top, content]))


def _section(name: str, heading: str, content: Markup) -> Markup:
    return tag("section", tag("h2", heading, id=name), content, aria_labelledby=name)


def _maps(by_format: Mapping[str, Mapping[str, float]]) -> list[Markup]:
    kinds = list(by_format)
    step = max(1, -(-len(kinds) // MAPS))
    found = []
    for kind in kinds[::step]:
        total = sum(by_format[kind].values())
        shares = {name: kl / total for name, kl in by_format[kind].items()} if total > 0 else {}
        caption = (
            f"Share of the divergence that each tensor would bring if all took {kind}: {number(total, 3)} nats in all. "
            "Tensors outside the blocks stand in the table."
        )
        made = heat_map(f"map-{kind}", shares, words=Words(f"Where {kind} hurts", "share", caption))
        if made is not None:
            found.append(made)
    return found or [tag("p", "Too few blocks for a map; the table below has every tensor.")]


def _checks(facts: Facts) -> Markup:
    rows = [
        (name, how, (number(estimate, 3), estimate), (number(found, 3), found), f"{found / estimate:.2f}")
        for name, how, estimate, found in facts.checks
        if estimate > 0
    ]
    columns = ("what", "how", ">estimated, nats", ">measured, nats", ">measured / estimated")
    return table("Second-order estimates, and what was measured on the same text", columns, rows)


def _ranges(facts: Facts) -> Markup:
    keys = list(next(iter(facts.ranges.values()), {}))
    rows = [
        (name, *(("–" if value is None else number(value, 3), value or 0.0) for value in figures.values()))
        for name, figures in facts.ranges.items()
    ]
    return table(
        "Numbers of each matrix and of its input", ["tensor", *(f">{key}" for key in keys)], rows, is_sortable=True
    )


def _every(costs: Sequence[Costs]) -> Markup:
    def error(value: float | None) -> tuple[str, float]:
        return ("–", 0.0) if value is None else (percent(value), value)

    rows = [
        (
            f"{one.tensor} as {one.format}",
            (size(one.nbytes), float(one.nbytes)),
            (f"{one.kl:.2e}", one.kl),
            error(one.weight),
            error(one.importance),
            error(one.output),
        )
        for one in costs
    ]
    columns = ("tensor", ">bytes", ">divergence, nats", ">weight error", ">weighted by importance", ">output error")
    return table("What each format would cost, the others untouched", columns, rows, is_sortable=True)

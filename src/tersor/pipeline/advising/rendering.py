"""Advice as a page, as Markdown and as JSON: which rung, why not the others, what to try now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from tersor.core.quantities import number, size
from tersor.core.records import to_json_text
from tersor.pages import blocks
from tersor.pages.blocks import Block, Table, drawn, plain_text
from tersor.pages.document import document, header, main
from tersor.pages.markup import join, tag
from tersor.pages.tradeoff import Point, tradeoff_chart
from tersor.pipeline.advising.ladder import Advice, Finding, Goal

__all__ = ["FORMS", "rows_of", "verdict_of", "written"]

FORMS = (".html", ".md", ".json")
TONES: Mapping[str, str] = {
    "met": "✓ pass",
    "likely met": "? inconclusive",
    "loses too much": "✗ fail",
    "too large": "✗ fail",
    "too slow": "✗ fail",
    "impossible": "! inconclusive",
}
PASSED = "passed over"
COLUMNS = ("rung", "verdict", ">size", ">loss", ">95 % interval", ">speed", ">seconds", "why")


def written(advice: Advice, form: str) -> str:
    """Return advice as text of the form ".html", ".md" or ".json"."""
    if form == ".json":
        return to_json_text(advice.to_object())
    return _page(advice) if form == ".html" else _markdown(advice)


def verdict_of(advice: Advice) -> str:
    """Return in one sentence what it is."""
    chosen = advice.chosen
    if chosen is None or chosen.made is None:
        return f"No rung meets the goal: {goal_of(advice.goal)}."
    speed = f", {chosen.made.speed.value:.2f}× the speed" if chosen.made.speed is not None else ""
    likely = " likely" if chosen.verdict == "likely met" else ""
    return f"{chosen.rung}{likely} meets the goal ({goal_of(advice.goal)}): {size(chosen.made.nbytes)}{speed}."


def goal_of(goal: Goal) -> str:
    """Return what is wanted, in words."""
    wanted = [f"lose at most {goal.most_loss:g} {goal.unit}"]
    if goal.most_bytes is not None:
        wanted.append(f"take at most {size(goal.most_bytes)}")
    if goal.least_speed is not None:
        wanted.append(f"be {goal.least_speed:g}× as fast as full precision")
    return ", ".join(wanted) if len(wanted) > 1 else f"{wanted[0]}, be as small as can be"


def rows_of(findings: Iterable[Finding]) -> list[tuple[str, ...]]:
    """Return the cells of COLUMNS; rungs that were passed over one after the other, for one reason, share a row."""
    rows: list[tuple[str, ...]] = []
    for (verdict, reason), group in groupby(findings, key=lambda one: (one.verdict, one.reason)):
        same = list(group)
        if verdict == PASSED and len(same) > 1:
            rows.append((f"{same[0].rung} … {same[-1].rung}", verdict, "", "", "", "", "", reason))
        else:
            rows += [_row(one) for one in same]
    return rows


def _row(one: Finding) -> tuple[str, ...]:
    made = one.made
    if made is None:
        return one.rung, one.verdict, "", "", "", "", "", one.reason
    loss = made.loss
    ends = "" if loss.low is None or loss.high is None else f"{number(loss.low)} … {number(loss.high)}"
    speed = "" if made.speed is None else f"{made.speed.value:.2f}×"
    cells = (size(made.nbytes), f"{number(loss.value)} {loss.unit}", ends, speed, f"{one.seconds:.1f}")
    return (one.rung, one.verdict, *cells, one.reason)


def _blocks(advice: Advice) -> Sequence[Block]:
    rows = rows_of(advice.findings)
    tried = Table("Rungs that were tried", COLUMNS, tuple(row for row in rows if row[1] != PASSED))
    left = tuple((row[0], row[-1]) for row in rows if row[1] == PASSED)
    gains = dict.fromkeys((one.rung, one.gain) for one in advice.findings if one.made is not None)
    expected = Table("What the rungs that were tried do", ("rung", "what it does"), tuple(gains))
    notes = [(one.rung, note) for one in advice.findings if one.made is not None for note in one.made.notes]
    told = [Table("What was to be said of them", ("rung", "note"), tuple(notes))] if notes else []
    passed = [Table("Rungs that were passed over", ("rung", "why"), left)] if left else []
    return (tried, expected, *passed, *told)


def _markdown(advice: Advice) -> str:
    lines = [f"# Advice on {plain_text(advice.model)}", plain_text(verdict_of(advice))]
    if advice.next:
        lines += ["## What to do now", "\n".join(f"- {plain_text(one)}" for one in advice.next)]
    return "\n\n".join([*lines, "## The ladder", *map(blocks.written, _blocks(advice))]) + "\n"


def _page(advice: Advice) -> str:
    made = [(one.rung, one.made) for one in advice.findings if one.made is not None]
    points = [Point(rung, one.nbytes, one.loss.value, one.loss.low, one.loss.high) for rung, one in made]
    unit = advice.goal.unit
    chart = tradeoff_chart("ladder", "What each rung takes and loses", f"loss ({unit})", points)
    following = tag("ul", *(tag("li", one) for one in advice.next))
    parts = [
        tag("p", verdict_of(advice), class_="verdict"),
        tag("section", tag("h2", "What to do now", id="next"), following, aria_labelledby="next"),
        tag(
            "section",
            tag("h2", "The ladder", id="rungs"),
            chart,
            *(drawn(one, TONES) for one in _blocks(advice)),
            aria_labelledby="rungs",
        ),
    ]
    heading = tag("span", "Advice on ", tag("strong", advice.model))
    top = header(heading, goal_of(advice.goal), [("#next", "What to do now"), ("#rungs", "The ladder")])
    return document(f"Advice on {advice.model}", join([top, main(*parts)]))

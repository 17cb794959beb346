"""What the page says of a rollout: its step, who gets which share, and how near each test is to deciding.

`gateway.rolling` says what a rollout is told as; what it leaves out is left out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tersor.core.quantities import number, percent
from tersor.pages.markup import Markup, join, tag

__all__ = ["rollout_section"]

WORDS = {"harmful": "✗ harmful", "safe": "✓ safe", "undecided": "? undecided"}
TONES = {"harmful": "fail", "safe": "pass", "undecided": "inconclusive"}
STATES = {"promoted": "pass", "rolled_back": "fail"}
MOST = 12
"""Tests, numbers and lines of history that are shown."""


def rollout_section(told: Mapping[str, Any]) -> Markup:
    """Return the rollout of one model; any part of `told` may be missing, or of another kind than expected."""
    return tag(
        "div",
        tag("h3", "Rollout"),
        _standing(told),
        _weight(told),
        _progress(told.get("progress")),
        *(_test(one) for one in _rows(told.get("tests"))),
        _next(told.get("next")),
        _history(_rows(told.get("history"))),
        class_="rollout",
    )


def _standing(told: Mapping[str, Any]) -> Markup:
    state = str(told.get("state", "unknown"))
    shown = tag("span", state.replace("_", " "), class_=f"badge {STATES.get(state, 'inconclusive')}")
    words: list[object] = [shown, " "]
    if told.get("candidate"):
        words += [tag("strong", told["candidate"]), " beside ", str(told.get("control") or "what serves")]
    if told.get("paused_in"):
        words += [f"; paused in {told['paused_in']}"]
    since = told.get("since")
    if isinstance(since, Mapping):
        words += [f"; since {str(since.get('at', '?'))[:19].replace('T', ' ')} by {since.get('who', '?')}"]
        words += [": ", tag("q", since["why"])] if since.get("why") else []
    return tag("p", *words)


def _weight(told: Mapping[str, Any]) -> Markup | None:
    """The steps of the canary as a bar: the share of now, and where the others stand."""
    weight = _number(told.get("weight"))
    if weight is None:
        return None
    steps = [step for step in (_number(one) for one in _list(told.get("steps"))) if step is not None][:MOST]
    share = f"{min(max(weight, 0.0), 1.0) * 100:.2f}%"
    marks = [
        tag("rect", x=f"{min(max(one, 0), 1) * 99.5:.2f}%", y="0", width="2", height="14", class_="step")
        for one in steps
    ]
    said = f"The candidate answers {percent(weight)} of requests"
    if steps:
        said += f"; the steps are {', '.join(percent(one) for one in steps)}"
    bar = tag(
        "svg",
        tag("rect", x="0", y="0", width="100%", height="14", class_="track"),
        tag("rect", x="0", y="0", width=share, height="14", class_="bar"),
        *marks,
        width="100%", height="14", role="img", aria_label=said,
    )  # fmt: skip
    return tag("figure", bar, tag("figcaption", f"{said}."), class_="chart split")


def _progress(told: object) -> Markup | None:
    if not isinstance(told, Mapping):
        return None
    parts = []
    for name, needed, unit in (("samples", "needed_samples", "samples"), ("elapsed_s", "needed_s", "s")):
        have, want = _number(told.get(name)), _number(told.get(needed))
        if have is not None:
            parts.append(f"{number(have, 4)}" + (f" of {number(want, 4)}" if want else "") + f" {unit}")
    return tag("p", f"This step: {', '.join(parts)}.", class_="note") if parts else None


def _test(told: Mapping[str, Any]) -> Markup:
    """A test: how near it is to saying harmful and safe, as two bars, and what it saw."""
    verdict = str(told.get("verdict", "undecided"))
    name = str(told.get("name", "test"))
    bars = [
        _nearness(name, word, _number(told.get(f"to_{key}"))) for word, key in (("safe", "safe"), ("harmful", "harm"))
    ]
    numbers = told.get("numbers")
    pairs = list(numbers.items())[:MOST] if isinstance(numbers, Mapping) else []
    seen = [f"{str(key).replace('_', ' ')} {_shown(value)}" for key, value in pairs]
    samples = _number(told.get("samples"))
    if samples is not None:
        seen.insert(0, f"{samples:,.0f} samples")
    head = [
        tag("strong", name),
        " ",
        tag("span", WORDS.get(verdict, verdict), class_=f"badge {TONES.get(verdict, 'fail')}"),
    ]
    if told.get("required") is False and verdict != "harmful":  # harm rolls back, required or not
        head.append(tag("span", " not required", class_="soft"))
    note = tag("p", ", ".join(seen), class_="note") if seen else None
    return tag("div", tag("p", *head), *bars, note, class_="test")


def _nearness(test: str, word: str, nearness: float | None) -> Markup | None:
    if nearness is None:
        return None
    share = round(min(max(nearness, 0.0), 1.0), 3)
    said = f"{test}: {percent(share)} of the way to {word}"
    style = "toward-safe" if word == "safe" else "toward-harm"
    bar = tag(
        "svg",
        tag("rect", x="0", y="0", width="100%", height="8", class_="track"),
        tag("rect", x="0", y="0", width=f"{share * 100:.2f}%", height="8", class_=style),
        width="100%", height="8", role="img", aria_label=said,
    )  # fmt: skip
    return tag("div", tag("span", word), bar, tag("span", percent(share), class_="number"), class_="nearness")


def _next(told: object) -> Markup | None:
    if not isinstance(told, Mapping) or not told.get("reason"):
        return None
    return tag(
        "p", f"Last look: {str(told.get('action', '')).replace('_', ' ').lower()}, {told['reason']}", class_="note"
    )


def _history(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not rows:
        return None
    items = []
    for row in list(reversed(rows))[:MOST]:
        at, state = str(row.get("at", ""))[:19].replace("T", " "), str(row.get("state", "")).replace("_", " ")
        weight = _number(row.get("weight"))
        share = f" {percent(weight)}" if weight is not None and state == "canary" else ""
        why = f", {row['why']}" if row.get("why") else ""
        items.append(tag("li", f"{at} {state}{share}: {row.get('who', '?')}{why}"))
    return join([tag("h4", "Steps so far"), tag("ul", *items, class_="steps")])


def _rows(told: object) -> list[Mapping[str, Any]]:
    return [row for row in _list(told) if isinstance(row, Mapping)][-MOST:]


def _list(told: object) -> list[Any]:
    return list(told) if isinstance(told, (list, tuple)) else []


def _number(told: object) -> float | None:
    return float(told) if isinstance(told, (int, float)) and not isinstance(told, bool) else None


def _shown(value: object) -> str:
    told = _number(value)
    return "–" if told is None else number(told, 3)

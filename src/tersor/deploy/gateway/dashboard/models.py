"""What the page says of one model: who answers, how its variants are, what requests became, and what may be done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from tersor.core.quantities import number, percent
from tersor.deploy.gateway.dashboard.rollout import rollout_section
from tersor.deploy.gateway.dashboard.samples import Figures
from tersor.pages.markup import Markup, join, tag
from tersor.pages.tables import table

__all__ = ["action_link", "badge", "charts", "minute_charts", "model_section"]

TONES = {
    "serving": "pass", "ready": "pass", "closed": "pass", "pass": "pass",
    "rolled back": "inconclusive", "unloaded": "inconclusive", "starting": "inconclusive", "restarting": "inconclusive",
    "waiting": "inconclusive", "half-open": "inconclusive", "inconclusive": "inconclusive",
}  # fmt: skip
"""State → how it looks; the others are of failures."""
SIGNS = {"pass": "✓", "inconclusive": "!", "fail": "✗"}
RUNNING = frozenset({"pause", "promote", "abort"})
STEPPING = {
    "created": RUNNING | {"start"}, "gated": RUNNING, "shadow": RUNNING, "canary": RUNNING,
    "paused": frozenset({"resume", "promote", "abort"}), "promoted": frozenset({"start"}),
    "rolled_back": frozenset({"start"}),
}  # fmt: skip
"""State of a rollout → orders that mean something to it."""
ROLLING = frozenset().union(*STEPPING.values())
SHADES = 6
CHARTS = (
    ("rate", "Requests a second"),
    ("latency", "Latency, ms: p50, p95, p99"),
    ("fallback", "Share of fallbacks, %"),
)
MINUTE_CHARTS = (
    ("agreement", "Agreement with full precision, %"),
    ("accuracy", "Accuracy by labels, %"),
    ("first", "Time to first token, ms: p50"),
    ("memory", "Memory of the engine, MiB"),
)


def badge(state: str) -> Markup:
    """Return a state as a word with a sign and a colour."""
    tone = TONES.get(state, "fail")
    return tag("span", f"{SIGNS[tone]} {state}", class_=f"badge {tone}")


def model_section(
    index: int, model: Mapping[str, Any], figures: Figures | None, actions: Mapping[str, Any], *, may_change: bool
) -> Markup:
    """Return what changes while it is looked at; `model` is a row of `status_of`."""
    rollout = model.get("rollout")
    return join(
        [
            _standing(model),
            _key_figures(figures),
            _split(figures),
            _variants(model),
            rollout_section(rollout) if isinstance(rollout, Mapping) else None,
            _findings(model),
            _buttons(index, model, actions) if may_change else None,
        ]
    )


def charts(index: int, model: str) -> Markup:
    """Return the places of the charts of a model, which the script draws; what they show stands in the figures too."""
    return tag("div", *_slots(model, CHARTS), class_="plots", id=f"charts-{index}", hidden="")


def minute_charts(index: int, model: str) -> Markup:
    """Return the same for those of the last hour; the script shows those that have something to draw."""
    return tag("div", *_slots(model, MINUTE_CHARTS, hidden=""), class_="plots", id=f"minutes-{index}", hidden="")


def _slots(model: str, kinds: Iterable[tuple[str, str]], **more: object) -> Iterable[Markup]:
    for kind, caption in kinds:
        said = {"role": "img", "aria_label": f"{caption}, {model}"}
        place = tag("div", class_="plot", data_model=model, data_chart=kind, **said)
        yield tag("figure", tag("figcaption", caption), place, **more)


def action_link(name: str, model: str | None, *, identity: str, is_first: bool = False) -> Markup:
    """Return the button that asks for the confirmation of an order."""
    target = "/dashboard/act?" + urlencode({"action": name, **({} if model is None else {"model": model})})
    style = "button first" if is_first else "button"
    return tag("a", name, href=target, hx_get=target, hx_target="#ask-body", class_=style, id=identity)


def _standing(model: Mapping[str, Any]) -> Markup:
    guard, since = model.get("guard"), model.get("since")
    states: list[object] = [badge(str(model["state"]))]
    if isinstance(guard, Mapping):
        breaker = guard["breaker"]
        if breaker["state"] != "closed":
            states += [" ", badge(f"breaker {breaker['state']}")]
    words: list[object] = []
    if model["answering"]:
        words += [tag("strong", model["answering"]), " answers"]
    if isinstance(since, Mapping):
        words += [" since ", _moment(since["at"]), f", by {since['who']}"]
        words += [": ", tag("q", since["why"])] if since["why"] else []
    if isinstance(guard, Mapping):
        words += [f"; {guard['in_flight']} in flight, {guard['waiting']} waiting"]
        if guard["breaker"]["state"] != "closed" and guard["breaker"]["reason"]:
            words += [f"; the breaker opened for {guard['breaker']['reason']}"]
    return tag("p", *states, " ", *words)


def _key_figures(figures: Figures | None) -> Markup:
    shown: list[tuple[str, str]] = []
    latencies = figures.latencies if figures else (None, None, None)
    shown.append(("requests a second", number(figures.rate, 3) if figures else "–"))
    shown += [
        (f"latency {name}", _seconds(value)) for name, value in zip(("p50", "p95", "p99"), latencies, strict=True)
    ]
    share = figures.fallback_share if figures else None
    shown.append(("fallbacks", "–" if share is None else percent(share)))
    rows = (tag("div", tag("dt", name), tag("dd", value)) for name, value in shown)
    return tag("dl", *rows, class_="figures", aria_label="The last 15 minutes")


def _split(figures: Figures | None) -> Markup | None:
    """Return who answered in the last 15 minutes, as a bar; None where nobody was asked."""
    total = sum(figures.answered.values()) if figures else 0.0
    if figures is None or not total:
        return tag("p", "No requests in the last 15 minutes.", class_="note")
    parts, keys, start = [], [], 0.0
    asked = {name: count for name, count in figures.answered.items() if count}
    for index, (name, count) in enumerate(sorted(asked.items(), key=lambda pair: -pair[1])):
        share, shade = count / total, f"shade{min(index, SHADES - 1)}"
        spot = {"x": f"{start * 100:.2f}%", "width": f"{share * 100:.2f}%"}
        parts.append(tag("rect", y="0", height="14", class_=shade, **spot))
        keys.append(tag("li", tag("span", class_=f"key {shade}"), f"{name} {percent(share)}, {count:,.0f}"))
        start += share
    said = "Who answered in the last 15 minutes"
    svg = tag("svg", tag("title", said), *parts, width="100%", height="14", role="img", aria_label=said)
    return tag("figure", svg, tag("figcaption", tag("ul", *keys, class_="keys")), class_="chart split")


def _variants(model: Mapping[str, Any]) -> Markup | None:
    variants = model["variants"]
    if not variants:
        return None
    rows = []
    for one in variants:
        reason = one.get("reason")
        known = one.get("registered")
        gate = known.get("gate") if known else None
        judged: object = "–"
        if known:
            judged = join([known["artefact"], " ", badge(gate["outcome"]) if gate else "not judged"])
            if known.get("override"):
                judged = join([judged, f" overridden by {known['override']['who']}"])
        state = join([badge(one["state"]), f" {reason}" if reason and one["state"] != "ready" else ""])
        rows.append([tag("strong", one["name"]), state, one["role"], one["engine"], str(one["starts"]), judged])
    columns = ["variant", "state", "role", "engine", ">starts", "artefact and gate"]
    return table(f"Variants of {model['name']}", columns, rows)


def _findings(model: Mapping[str, Any]) -> Markup | None:
    counts = model.get("counts") or {}
    rows = [
        [what, name.replace("_", " "), f"{count:,}"]
        for what, kind in (("sentinel", "findings"), ("fallback for", "fallbacks"))
        for name, count in sorted(counts.get(kind, {}).items(), key=lambda pair: -pair[1])
    ]
    caption = "What sentinels found, and why the fallback answered, since the start"
    return table(caption, ["kind", "what", ">count"], rows) if rows else None


def _buttons(index: int, model: Mapping[str, Any], actions: Mapping[str, Any]) -> Markup | None:
    name, hidden = str(model["name"]), _idle(model)
    links = [
        action_link(action, name, identity=f"act-{index}-{action}")
        for action, row in actions.items()
        if row["takes_model"] and action not in hidden
    ]
    return tag("div", *links, class_="buttons", role="group", aria_label=f"Orders for {name}") if links else None


def _idle(model: Mapping[str, Any]) -> set[str]:
    """Actions that would do nothing now; those that this page does not know are never among them."""
    guard = model.get("guard")
    if guard is None:
        return {"rollback", "restore", "reset-breaker", "unload"}
    is_back = model["state"] == "rolled back"
    idle = {"load", "rollback" if is_back or not model["fallback"] else "restore"}
    if not model["fallback"]:
        idle.add("restore")
    rollout = model.get("rollout")
    state = str(rollout.get("state")) if isinstance(rollout, Mapping) else ""
    idle |= ROLLING - STEPPING.get(state, frozenset())
    breaker = guard["breaker"]
    return idle | ({"reset-breaker"} if breaker["state"] == "closed" and not breaker["openings"] else set())


def _moment(at: str) -> Markup:
    return tag("time", at.replace("T", " ").partition(".")[0].removesuffix("Z") + " UTC", datetime=at)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{number(value * 1e3, 3)} ms" if value < 1 else f"{number(value, 3)} s"

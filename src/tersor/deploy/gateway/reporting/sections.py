"""A report in words and tables: what Markdown and HTML both show, made once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tersor.core.quantities import number, percent, size
from tersor.deploy.gateway.reporting.figures import Compared, Value
from tersor.deploy.gateway.reporting.incidents import Incident, time_of
from tersor.deploy.gateway.reporting.report import Beside, Decided, DeploymentReport, ModelReport, Window
from tersor.deploy.rollout.sequential.standing import Standing
from tersor.pages.blocks import Block, Section, Table

__all__ = ["drift_blocks", "figure_table", "gateway_section", "incident_table",
           "model_sections", "span"]  # fmt: skip

MOST = 60
"""Rows of a table of what happened; JSON holds all."""
MOST_SHOWN = 3
"""Features of a window."""


def gateway_section(report: DeploymentReport) -> Section:
    """Return when the gateway ran, and what could not be read."""
    rows = [
        (_at(run.began), _until(run.ended, was_cut=run.was_cut), run.version,
         ", ".join(f"{model}: {variant}" for model, variant in run.primaries.items()))
        for run in report.runs[:MOST]
    ]  # fmt: skip
    table = _table("Runs of the gateway", ("began, UTC", "ended", "tersor", "primaries"), rows)
    blocks: list[Block] = [f"Not read: {problem}." for problem in report.problems]
    return Section("Gateway", "gateway", (*blocks, table or "No run of the gateway stands in the record."))


def model_sections(model: ModelReport, *, has_registry: bool) -> tuple[Section, ...]:
    """Return all of one model, what matters most first."""
    return (
        Section("Figures", "figures", tuple(_figures(model))),
        Section("Incidents", "incidents", tuple(_incidents(model))),
        Section("Decisions", "decisions", tuple(_decisions(model))),
        Section("What served when", "served", tuple(_served(model, has_registry=has_registry))),
        Section("Drift", "drift", tuple(drift_blocks(model.drift))),
    )


def span(seconds: float | None) -> str:
    """Return a length of time in the unit that reads best.

    >>> span(0.0123), span(75.0), span(7200.0), span(None)
    ('12.3 ms', '75 s', '2 h', '–')
    """
    if seconds is None:
        return "–"
    if not math.isfinite(seconds):
        return "∞" if seconds > 0 else "-∞"
    for least, unit, name in ((172_800, 86_400, "d"), (7200, 3600, "h"), (120, 60, "min"), (1, 1, "s")):
        if abs(seconds) >= least:
            return f"{number(seconds / unit, 3)} {name}"
    return f"{number(seconds * 1e3, 3)} ms"


# Figures


def _figures(model: ModelReport) -> Iterable[Block]:
    if not model.fallback:
        yield "No full precision serves beside this model: there is nothing to compare its figures with."
    else:
        yield (
            f"Full precision is {model.fallback}. It answers other requests than the rest: those that they could not, "
            "and all while a model is rolled back. Ranges hold 95 times of 100; a difference is better or worse where "
            "its range leaves out 0."
        )
    for window in model.windows:
        for beside in window.variants:
            yield figure_table(window, beside, model.fallback)


def figure_table(window: Window, beside: Beside, fallback: str) -> Table:
    """Return the figures of a variant beside full precision's; `fallback` is empty where there is none."""
    role = "" if beside.role == "primary" else f", {beside.role}"
    caption = f"{beside.variant}{role}: {window.name} ({span(window.seconds)})"
    columns = ("figure", f">{beside.variant}", *((f">{fallback}", ">difference") if fallback else ()))
    rows = []
    for one in beside.figures:
        ours = _value(one, one.ours) if one.ours else f"not measured\n{one.figure.absent}"
        theirs = (_value(one, one.full), _difference(one)) if fallback else ()
        rows.append((f"{one.figure.title}\n{one.reading}", ours, *theirs))
    return Table(caption, columns, tuple(rows))


def _value(one: Compared, value: Value | None) -> str:
    """A value; below it its interval, and how many it rests on."""
    if value is None:
        return "is the reference" if one.figure.name == "agreement" else "–"
    more = [_ends(one, value)] * (value.low is not None) + [f"of {value.of:,}"] * bool(value.of)
    return _amount(one, value.value) + (f"\n{', '.join(more)}" if more else "")


def _difference(one: Compared) -> str:
    told = one.difference
    if told is None:
        return "–"
    if one.figure.unit == "share":  # in points, for a share of a share would be misread
        value, low, high = (_points(part) for part in (told.value, told.low, told.high))
        return f"{value} points\n{low} … {high}"
    more = [_ends(one, told, is_signed=True)] * (told.low is not None)
    if one.ours and one.full and one.full.value:
        more.append(f"×{number(one.ours.value / one.full.value, 3)}")
    return f"{_signed(one, told.value)}\n{', '.join(more)}" if more else _signed(one, told.value)


def _ends(one: Compared, value: Value, *, is_signed: bool = False) -> str:
    """An interval, its unit said once where both ends have the same."""
    shown = _signed if is_signed else _amount
    low, high = shown(one, value.low), shown(one, value.high)
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(f' {unit}') if unit else low} … {high}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{'+' if value > 0 else ''}{number(100 * value, 3)}"


def _signed(one: Compared, value: float | None) -> str:
    return ("+" if value is not None and 0 < value < math.inf else "") + _amount(one, value)


def _amount(one: Compared, value: float | None) -> str:
    unit = one.figure.unit
    if value is None:
        return "–"
    if unit == "seconds":
        return span(value)
    if unit == "bytes":
        return size(round(value))
    return percent(value) if unit == "share" else f"{number(value, 3)} {unit}"


# Incidents


def _incidents(model: ModelReport) -> Iterable[Block]:
    for one in model.pending:
        about = f"{one.get('alert')} of {one.get('variant')}: {one.get('summary')}"
        yield f"Pending: {about}. {_sentence(one.get('remedy'))}"
    yield incident_table(model.incidents[:MOST]) or "Nothing befell this model."
    causes = [
        (one.day, _KINDS.get(one.kind, one.kind), one.why.replace("_", " "), f"{one.count:,}") for one in model.causes
    ]
    told = _table(
        "Why the fallback answered, and what sentinels found", ("day", "kind", "why", ">count"), causes[:MOST]
    )
    yield told or "The fallback answered nothing in place of another, and no sentinel found anything."


def incident_table(incidents: Sequence[Incident]) -> Table | None:
    """Return incidents in their order; None where there are none."""
    columns = ("what", "severity", "began, UTC", "numbers, and what to do")
    return _table("Alerts, breakers, restarts, refreshes", columns, [_incident(one) for one in incidents])


_KINDS = {"fallbacks": "fallback for", "findings": "sentinel"}


def _incident(one: Incident) -> tuple[str, ...]:
    """A row: whose it was, how long it lasted and what helps stand on second lines."""
    lasts = " so far" if one.seconds is not None and one.ended is None else ""
    lasted = "" if one.seconds is None else f"lasted {span(one.seconds)}{lasts}"
    return f"{one.what}\n{one.variant}", one.severity, f"{_at(one.began)}\n{lasted}", f"{one.told or '–'}\n{one.remedy}"


# Decisions


def _decisions(model: ModelReport) -> Iterable[Block]:
    trying = model.trying
    if trying is None:
        yield "No candidate was tried: there was nothing to decide."
        return
    state = trying.state.replace("_", " ")
    yield (
        f"{trying.candidate}, attempt {trying.attempt}, is {state} and answers {percent(trying.weight)} of requests; "
        f"{trying.samples:,} samples in this step."
    )
    if trying.standings:
        yield Table("Where each test stands", TESTS, tuple(_tests(trying.standings)))
    if not model.decisions:
        yield "Nothing was decided yet."
        return
    same = sum(not one.again for one in model.decisions)
    yield (
        f"Each decision was made again for this report from the numbers that are kept with it: {same} of "
        f"{len(model.decisions)} came out the same. They stand in the file of rollouts beside the audit log, under "
        "decisions; tersor.deploy.rollout.decision.replayed decides such a row again, and refuses one that comes out "
        "otherwise."
    )
    columns = ("when, UTC", "in", ">share", "decision", "why", "again")
    yield Table("Decisions", columns, tuple(_decision(one) for one in model.decisions[:MOST]))
    rows = [(_at(one.at), *row) for one in model.decisions[:MOST] for row in _tests(one.standings)]
    yield Table("The numbers of each decision", ("decided, UTC", *TESTS), tuple(rows))


TESTS = ("test", "verdict", ">to safe", ">to harmful", ">samples", "numbers")


def _tests(standings: Mapping[str, Standing]) -> Iterable[tuple[str, ...]]:
    for name, one in standings.items():
        known = {word.replace("_", " "): value for word, value in one.numbers.items() if math.isfinite(value)}
        seen = ", ".join(f"{word} {number(value, 4)}" for word, value in known.items())
        near = [percent(round(value, 3)) for value in (one.to_safe, one.to_harm)]
        yield name.replace("_", " "), one.verdict, *near, f"{one.samples:,}", seen or "–"


def _decision(one: Decided) -> tuple[str, ...]:
    action = one.action.replace("_", " ").lower()
    return _at(one.at), one.state, percent(one.weight), action, one.reason, one.again or "the same"


# What served


def _served(model: ModelReport, *, has_registry: bool) -> Iterable[Block]:
    if has_registry:
        rows = [
            (_at(one.since), _until(one.until), one.state, one.artefact,
             f"{one.candidate} {percent(one.weight)}" if one.candidate else "–", one.fallback or "–", one.who,
             one.why or "–")
            for one in model.served[:MOST]
        ]  # fmt: skip
        columns = ("from, UTC", "until", "state", "artefact", "candidate", "fallback", "by", "why")
        yield _table("As the registry has it", columns, rows) or "The registry knows of nothing that served."
        gates = [
            (one.artefact, one.outcome or "none", _at(one.at), one.who, one.override or "–") for one in model.gates
        ]
        told = _table("Last verdict of each gate", ("artefact", "verdict", "when, UTC", "by", "overridden by"), gates)
        yield told or "No gate has judged any of these artefacts."
    else:
        yield (
            f"No registry keeps what served: {model.primary} did whenever the gateway ran, but for the orders and "
            "moves below."
        )
    events = [(_at(one.at), one.what, one.who, one.why or "–") for one in model.events[:MOST]]
    yield (
        _table("Orders, and moves of rollouts", ("when, UTC", "what", "by", "why"), events)
        or "Nobody ordered anything."
    )


# Drift


def drift_blocks(windows: Iterable[Mapping[str, Any]]) -> Iterable[Block]:
    """Return what the last window of each side showed, rows as the record keeps them."""
    rows = [_features(one) for one in windows]
    columns = ("side", "variant", "window ended, UTC", ">requests", "drifted", "farthest from what is usual")
    yield (
        _table("The last window of each side", columns, rows)
        or "No window was compared: the first 500 requests say what is usual where no calibration data are named, and "
        "a window needs 50."
    )
    if rows:
        yield (
            "Distances are Jensen–Shannon divergences in nats, 0 to 0.69; outside is the share that lies beyond all "
            "that was usual."
        )


def _features(one: Mapping[str, Any]) -> tuple[str, ...]:
    features = one.get("features")
    rows = list(features.items())[:MOST_SHOWN] if isinstance(features, dict) else []
    far = "; ".join(f"{name} {number(row['js'], 3)}, outside {percent(row['outside'])}" for name, row in rows)
    drifted = one.get("drifted") or ()
    at = one.get("at")
    return (
        str(one.get("side", "")), str(one.get("variant") or "all"), "–" if at is None else _at(time_of(at)),
        f"{one.get('requests', 0):,}", ", ".join(map(str, drifted)) or "nothing", far or "–",
    )  # fmt: skip


def _table(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table | None:
    return Table(caption, tuple(columns), tuple(rows)) if rows else None


def _at(text: str) -> str:
    """A time as people read it."""
    return text[:19].replace("T", " ")


def _until(text: str | None, *, was_cut: bool = False) -> str:
    return "not said: killed, or without power" if was_cut else "now" if text is None else _at(text)


def _sentence(text: object) -> str:
    words = str(text or "")
    return f"{words[:1].upper()}{words[1:]}."

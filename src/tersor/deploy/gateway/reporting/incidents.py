"""Happenings in pairs, what began and when it was over: alerts, breakers, restarts, refreshes, runs of a gateway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tersor.deploy.gateway.recording.store import Happening
from tersor.deploy.registry.texts import timestamp

__all__ = ["Cause", "Incident", "Run", "causes_of", "incidents_of", "runs_of", "time_of"]

LASTING = {"alert firing": "alert resolved", "breaker open": "breaker closed"}
"""What begins → what ends it."""
ALONE = ("engine restarted", "drifted", "reference made", "refresh wanted", "refresh run")


@dataclass(frozen=True, slots=True)
class Incident:
    """One.

    what     an alert by its name, or what happened in words
    ended    None while it lasts, and for what has no length
    seconds  that it lasted, until the report where it still does; None for what has no length
    told     the numbers, in words
    remedy   what helps; empty where nothing needs to be done
    """

    what: str
    variant: str
    severity: str
    began: str
    ended: str | None
    seconds: float | None
    told: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Run:
    """A gateway from its start to its end; `ended` is None while it runs, or where `was_cut`: it could not say so."""

    began: str
    ended: str | None
    was_cut: bool
    version: str
    primaries: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Cause:
    """How often on a day the fallback answered for a reason (kind "fallbacks"), or a sentinel found something."""

    day: str
    kind: str
    why: str
    count: int


def time_of(moment: float) -> str:
    """Return Unix seconds as reports write them."""
    return timestamp(datetime.fromtimestamp(moment, UTC))


def incidents_of(model: str, happenings: Iterable[Happening], moment: float) -> tuple[Incident, ...]:
    """Return what befell a model, the latest first; `moment` is that of the report."""
    found: list[Incident] = []
    mine = [one for one in happenings if one.model == model]
    for index, one in enumerate(mine):
        if one.what in LASTING:
            end = _end(one, mine[index + 1 :])
            ended = None if end is None else end.at
            seconds = max(0.0, (moment if ended is None else ended) - one.at)
            found.append(_incident(one, None if ended is None else time_of(ended), seconds))
        elif one.what in ALONE:
            found.append(_incident(one, None, None))
    return tuple(reversed(found))


def _end(begun: Happening, later: Sequence[Happening]) -> Happening | None:
    """What ends it: of the same variant, and of the same alert; another beginning ends it too, for one was lost."""
    same = [one for one in later if _about(one) == _about(begun)]
    return next((one for one in same if one.what in (begun.what, LASTING[begun.what])), None)


def _about(one: Happening) -> tuple[object, object]:
    return one.details.get("variant"), one.details.get("alert")


def _incident(one: Happening, ended: str | None, seconds: float | None) -> Incident:
    given = one.details
    name = str(given.get("alert", one.what))
    severity = str(
        given.get("severity", "warning" if one.what in (*LASTING, "engine restarted", "drifted") else "note")
    )
    about = str(given.get("variant", ""))
    remedy = str(given.get("remedy", ""))
    return Incident(name, about, severity, time_of(one.at), ended, seconds, _told(one.what, given), remedy)


def _told(what: str, given: Mapping[str, Any]) -> str:
    """The numbers of a happening, in words."""
    side, times, code = given.get("side", ""), given.get("times", 1), given.get("exit_code")
    value, limit = _number(given.get("value")), _number(given.get("limit"))
    again = f"{times} times; " if times != 1 else ""
    outcome = "could not be run, or took too long" if code is None else f"exit code {code}"
    words = {
        "alert firing": f"{given.get('summary', '')}: {given.get('figure', 'it')} was {value}, the limit {limit}",
        "engine restarted": again + str(given.get("reason") or "no more is known"),
        "breaker open": f"{given.get('reason', '')}; probes after {_number(given.get('wait_s'))} s",
        "drifted": f"{side}: {_listed(given.get('drifted'))}, of {given.get('requests', '?')} requests",
        "reference made": f"{side}: {given.get('source', '')} are what is usual",
        "refresh wanted": f"{_listed(given.get('features'))} drifted: {_listed(given.get('commands'), '; ')}",
        "refresh run": f"{_listed(given.get('command'), ' ')}: {outcome}",
    }
    return words.get(what, "")


def _listed(given: object, between: str = ", ") -> str:
    return between.join(map(str, given)) if isinstance(given, (list, tuple)) and given else "nothing"


def _number(given: object) -> str:
    return f"{given:.4g}" if isinstance(given, (int, float)) else "?"


def runs_of(happenings: Iterable[Happening]) -> tuple[Run, ...]:
    """Return the runs of the gateway, the latest first; all but the last have ended."""
    found: list[Run] = []
    begun: Happening | None = None
    for one in happenings:
        if one.what == "gateway began":
            if begun is not None:
                found.append(_run(begun, None, was_cut=True))
            begun = one
        elif one.what == "gateway ended" and begun is not None:
            found.append(_run(begun, time_of(one.at), was_cut=False))
            begun = None
    if begun is not None:
        found.append(_run(begun, None, was_cut=False))
    return tuple(reversed(found))


def _run(begun: Happening, ended: str | None, *, was_cut: bool) -> Run:
    primaries = begun.details.get("primaries")
    known = {str(name): str(one) for name, one in primaries.items()} if isinstance(primaries, dict) else {}
    return Run(time_of(begun.at), ended, was_cut, str(begun.details.get("version", "")), known)


def causes_of(model: str, causes: Mapping[str, Any], since: str) -> tuple[Cause, ...]:
    """Return the causes of a model from the day of `since` on, the latest day first, the most frequent first."""
    found = []
    for day in sorted(causes, reverse=True):
        kinds = causes[day].get(model) if day >= since[:10] and isinstance(causes[day], dict) else None
        for kind, counts in kinds.items() if isinstance(kinds, dict) else ():
            rows = [(str(why), count) for why, count in dict(counts).items() if type(count) is int]
            found += [Cause(day, str(kind), why, count) for why, count in sorted(rows, key=lambda row: -row[1])]
    return tuple(found)

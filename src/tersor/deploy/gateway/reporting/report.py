"""A report on a deployment: of each model figures beside full precision, what served, decisions, incidents, drift."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tersor import __version__
from tersor.core.errors import FormatError, SchemeError
from tersor.core.records import plain
from tersor.deploy.config import Deployment, ModelPlan
from tersor.deploy.gateway.recording.cells import Cell, added
from tersor.deploy.gateway.recording.recorder import DAY_S, Record
from tersor.deploy.gateway.reporting.evidence import Evidence, Registered, read_evidence
from tersor.deploy.gateway.reporting.figures import Compared, compared
from tersor.deploy.gateway.reporting.incidents import (
    Cause,
    Incident,
    Run,
    causes_of,
    incidents_of,
    runs_of,
    time_of,
)
from tersor.deploy.gateway.rolling.progress import Progress
from tersor.deploy.rollout.decision import replayed
from tersor.deploy.rollout.sequential import restored
from tersor.deploy.rollout.sequential.standing import Standing

__all__ = ["Beside", "Decided", "DeploymentReport", "Event", "Gated", "ModelReport", "Served", "Trying", "Window",
           "deployment_report", "last_hour"]  # fmt: skip

SCHEMA = "tersor.deployment-report/1"
LAST_HOUR, HOUR_S = "the last hour", 3600.0
ORDERS = ("rollback", "restore", "reload", "load", "unload", "reset-breaker", "start", "pause", "resume", "promote",
          "abort")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beside:
    """One variant in a window; `role`: primary, candidate, or earlier, where the deployment names it no more."""

    variant: str
    role: str
    figures: tuple[Compared, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """A span: its name, when it begins, seconds until the report (from the first count on), what it holds."""

    name: str
    since: str
    seconds: float
    variants: tuple[Beside, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What stood in the registry from when to when; `until` is None while it does."""

    since: str
    until: str | None
    state: str
    artefact: str
    fallback: str
    candidate: str
    weight: float
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Gated:
    """The last verdict on an artefact, and who answers for it, if anybody does."""

    artefact: str
    outcome: str
    at: str
    who: str
    override: str


@dataclass(frozen=True, slots=True)
class Event:
    """A move of a rollout, or an order of an operator's."""

    at: str
    what: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that changed something.

    standings  of every test, by name
    again      what deciding anew from its numbers says: empty where it came out the same
    """

    at: str
    state: str
    weight: float
    action: str
    reason: str
    alarms: tuple[str, ...]
    standings: Mapping[str, Standing]
    again: str


@dataclass(frozen=True, slots=True)
class Trying:
    """How far the rollout of a candidate is."""

    candidate: str
    attempt: int
    state: str
    weight: float
    samples: int
    standings: Mapping[str, Standing]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """All of one model; `fallback`, full precision, is empty where there is none. The latest comes first everywhere."""

    name: str
    primary: str
    fallback: str
    candidate: str
    windows: tuple[Window, ...]
    served: tuple[Served, ...]
    gates: tuple[Gated, ...]
    events: tuple[Event, ...]
    trying: Trying | None
    decisions: tuple[Decided, ...]
    incidents: tuple[Incident, ...]
    pending: tuple[Mapping[str, Any], ...]
    causes: tuple[Cause, ...]
    drift: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """All of a deployment, between `since` and `at`; `problems`: what could not be read."""

    schema: str
    version: str
    name: str
    since: str
    at: str
    has_registry: bool
    runs: tuple[Run, ...]
    models: tuple[ModelReport, ...]
    problems: tuple[str, ...]

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        found: dict[str, Any] = plain(self)
        for model in found["models"]:
            for window in model["windows"]:
                for beside in window["variants"]:
                    beside["figures"] = [_row(one) for one in beside["figures"]]
        return found


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """A figure without how it is counted."""
    figure = one["figure"]
    rest = {name: one[name] for name in ("ours", "full", "difference")}
    return {**{name: figure[name] for name in ("name", "title", "unit")}, **rest,
            "absent": "" if one["ours"] else figure["absent"]}  # fmt: skip


def deployment_report(
    deployment: Deployment, name: str, moment: float, *, days: int | None = None, only: str = ""
) -> DeploymentReport:
    """Return the report on a deployment.

    name    what it is called: the file, or the name that a registry knows
    moment  Unix seconds that it is made at
    days    how far it looks back, days of UTC with the one that lasts; None: as far as the record goes
    only    one of the models; empty: all
    Raises SchemeError for another model, or days that are none. What cannot be read is told in the report.
    """
    if only and only not in deployment.models:
        raise SchemeError(f"{name}: no model {only!r:.80}; there are {', '.join(deployment.models)}")
    if days is not None and days < 1:
        raise SchemeError(f"days: a whole number above 0, not {days}")
    found = read_evidence(deployment)
    first = moment // DAY_S * DAY_S - (days - 1) * DAY_S if days else 0.0
    since = max(first, _begin(found, moment))
    models = [
        _model(one, plan, found, (first, since, moment)) for one, plan in deployment.models.items() if only in ("", one)
    ]
    runs = tuple(run for run in runs_of(found.happenings) if run.ended is None or run.ended >= time_of(first))
    return DeploymentReport(
        SCHEMA, __version__, name, time_of(since), time_of(moment), bool(deployment.registry), runs, tuple(models),
        found.problems,
    )  # fmt: skip


def last_hour(plan: ModelPlan, candidate: str, records: Mapping[str, Record], moment: float) -> Callable[[], Window]:
    """Return what makes the window of the last hour, of what was counted until now: it may be called in a thread."""
    counted = _Counted(plan, candidate, records, 0.0, moment)
    found = counted.sums(moment - HOUR_S, "minutes")
    return lambda: counted.beside(LAST_HOUR, *found)


def _begin(found: Evidence, moment: float) -> float:
    """When the record begins: a day's count says midnight, and what happened first on that day when in truth."""
    cells = [
        cell.at for record in found.records.values() for cell in (*record.days, *record.minutes, record.now) if cell.at
    ]
    counted = min(cells, default=moment)
    happened = min((one.at for one in found.happenings), default=counted)
    return happened if counted <= happened < counted + DAY_S else min(counted, happened)


def _model(name: str, plan: ModelPlan, found: Evidence, times: tuple[float, float, float]) -> ModelReport:
    """Return the report on a model; `times`: where it begins, where figures do, and its own."""
    first, since, moment = times
    begin = time_of(first)
    happenings = [one for one in found.happenings if one.at >= first]
    records = {variant: one for (model, variant), one in found.records.items() if model == name}
    now, registered = found.rollouts.get(name), found.registered.get(name, Registered())
    candidate = plan.candidate or (now.candidate if now else "")
    decisions = [] if now is None else [one for row in now.decisions if (one := _decided(row)).at >= begin]
    return ModelReport(
        name,
        plan.primary,
        plan.fallback or "",
        plan.candidate or "",
        _Counted(plan, candidate, records, since, moment).windows(),
        tuple(one for one in _served(registered) if one.until is None or one.until >= begin),
        _gates(registered),
        tuple(one for one in _events(name, found, now) if one.at >= begin),
        None if now is None else _trying(now),
        tuple(reversed(decisions)),
        incidents_of(name, happenings, moment),
        tuple(one for one in found.alerts if (one.get("model"), one.get("state")) == (name, "pending")),
        causes_of(name, found.causes, begin),
        tuple(one for one in found.drift if one.get("model") == name),
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """What was counted of one model; `candidate` is empty where none was ever tried."""

    plan: ModelPlan
    candidate: str
    records: Mapping[str, Record]
    since: float
    moment: float

    def windows(self) -> tuple[Window, ...]:
        midnight, day = self.moment // DAY_S * DAY_S, self.since // DAY_S * DAY_S
        hour = self.moment - HOUR_S
        rows = [(LAST_HOUR, hour, "minutes")]
        if max(self.since, midnight) < hour:  # else it would be the same once more
            rows.append(("today, UTC", midnight, "days"))
        if self.since < min(midnight, hour):
            rows.append((f"since {time_of(self.since)[:10]}", day, "days"))
        return tuple(self._window(*row) for row in rows)

    def _window(self, name: str, begin: float, kind: str) -> Window:
        return self.beside(name, *self.sums(begin, kind))

    def sums(self, begin: float, kind: str) -> tuple[dict[str, Cell], float]:
        """Return what was counted of each variant since `begin`, and seconds from the first count on."""
        cells = {
            variant: [cell for cell in (*getattr(record, kind), record.now) if cell.at and cell.at >= begin]
            for variant, record in self.records.items()
        }
        # A day's count begins at midnight, whenever the gateway did.
        first = max(min((cell.at for one in cells.values() for cell in one), default=self.moment), self.since)
        seconds = max(1.0, self.moment - max(begin, first))
        return {variant: added(one) for variant, one in cells.items() if one}, seconds

    def beside(self, name: str, sums: Mapping[str, Cell], seconds: float) -> Window:
        """Return the variants of a window beside full precision; some milliseconds each."""
        fallback = self.plan.fallback
        full = None if fallback is None else sums.get(fallback, Cell(0))
        shown = [
            Beside(variant, role, compared(sums.get(variant, Cell(0)), full, seconds))
            for variant, role in self._roles(sums).items()
        ]
        return Window(name, time_of(self.moment - seconds), round(seconds, 1), tuple(shown))

    def _roles(self, known: Mapping[str, Cell]) -> dict[str, str]:
        """Variants that are shown beside full precision, and what they are."""
        roles = {self.plan.primary: "primary"}
        if self.candidate in known:
            roles.setdefault(self.candidate, "candidate")
        roles |= {name: "earlier" for name in known if name not in roles and name not in self.plan.variants}
        return {name: role for name, role in roles.items() if name != self.plan.fallback}


def _served(registered: Registered) -> Iterable[Served]:
    for one in reversed(registered.history):
        row = one.deployment
        yield Served(
            row.since, one.until, row.state, row.artefact, row.fallback or "", row.candidate or "", row.weight, row.who,
            row.why,
        )  # fmt: skip


def _gates(registered: Registered) -> tuple[Gated, ...]:
    rows = []
    for label, verdicts in registered.verdicts.items():
        last = verdicts[-1] if verdicts else None
        covered = last.id if last else None
        overrides = [one for one in registered.overrides.get(label, ()) if one.verdict == covered]
        by = f"{overrides[-1].who}: {overrides[-1].why}" if overrides else ""
        if last or by:
            rows.append(
                Gated(label, last.outcome if last else "", last.at if last else "", last.who if last else "", by)
            )
    return tuple(rows)


def _events(name: str, found: Evidence, now: Progress | None) -> list[Event]:
    """Moves of rollouts and what operators had done, the latest first."""
    rows = [] if now is None else [
        Event(move.at, f"{now.candidate} {move.state}" + (f" at {100 * move.weight:g} %" if move.weight else ""),
              move.who, move.why)
        for move in now.history
    ]  # fmt: skip
    rows += [
        Event(line.at, f"{line.what}, {line.result}", line.who, line.reason)
        for line in found.lines
        if line.subject in (name, "*") and line.what in ORDERS and line.result in ("done", "failed")
    ]
    return sorted(rows, key=lambda one: one.at, reverse=True)


def _trying(now: Progress) -> Trying:
    try:
        standings = {name: test.standing for name, test in restored(now.tests).items()} if now.tests else {}
    except (FormatError, SchemeError):  # a file that somebody changed: deciding again says so
        standings = {}
    weight = now.history[-1].weight if now.history else 0.0
    return Trying(now.candidate, now.attempt, now.state, weight, now.samples, standings)


def _decided(row: Mapping[str, Any]) -> Decided:
    """A decision, and whether its numbers lead to it again."""
    document = row["decision"]
    again, standings = "", {}
    try:
        standings = dict(replayed(document).standings)
    except (FormatError, SchemeError) as error:
        again = str(error)
    alarms = tuple(map(str, document.get("alarms", ())))
    state = f"{row['state']}" + ("" if row.get("step") is None else f", step {row['step'] + 1}")
    return Decided(
        str(row["at"]), state, float(row["weight"]), str(document.get("action")), str(document.get("reason")), alarms,
        standings, again,
    )  # fmt: skip

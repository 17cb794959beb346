"""What makes the page live: a look at everything every few seconds, and those who listen to what changed.

One look serves all listeners. Each is sent only what is not as he was sent it before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tersor.core.errors import TersorError
from tersor.deploy.gateway.admission import BusyError
from tersor.deploy.gateway.dashboard.models import action_link, badge, charts, minute_charts, model_section
from tersor.deploy.gateway.dashboard.samples import STEP_S, Samples
from tersor.deploy.gateway.dashboard.watched import Watched
from tersor.deploy.gateway.operating.audit import Line
from tersor.deploy.gateway.operating.fleet import Fleet
from tersor.deploy.gateway.operating.status import status_of
from tersor.deploy.gateway.rolling.rollouts import Rollouts
from tersor.pages.markup import Markup, join, tag
from tersor.pages.tables import table

__all__ = ["Look", "Pulse", "frame"]

MOST_LISTENERS = 32
HEARTBEAT_S = 15.0
POLL_S = 0.5
"""How soon a listener learns that the gateway drains, or that he may listen no longer."""
LINES = 30
"""Of the audit log."""


@dataclass(frozen=True, slots=True)
class Look:
    """Everything as it is at one moment, for those who may change it or for those who may not.

    shape   of the page: other models need another page
    pieces  by name of their event; `series` is JSON, the others are HTML
    """

    shape: str
    models: tuple[str, ...]
    pieces: Mapping[str, str]


@dataclass(eq=False)
class Pulse:
    """Takes samples while the gateway runs, and tells listeners; `is_draining` ends them."""

    fleet: Fleet
    rollouts: Rollouts
    watched: Watched
    is_draining: Callable[[], bool]
    samples: Samples = field(init=False)
    listeners: int = field(default=0, init=False)
    _beat: int = field(default=0, init=False)
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _looks: dict[tuple[bool, bool], tuple[int, Look]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.samples = Samples(self.fleet.metrics)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take a sample every few seconds."""

        async def beat() -> None:
            while True:
                self.samples.take()
                self.wake()
                await asyncio.sleep(STEP_S)

        task = asyncio.create_task(beat(), name="dashboard")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def wake(self) -> None:
        """Have everybody look: something has changed."""
        self._beat += 1
        self._woken.set()
        self._woken = asyncio.Event()

    async def look(self, *, is_admin: bool, may_change: bool) -> Look:
        """Return everything as it is now; within one beat it is looked at once."""
        kind, beat = (is_admin, may_change), self._beat
        known = self._looks.get(kind)
        if known is not None and known[0] == beat:
            return known[1]
        lines = await self._lines() if is_admin else None
        pieces = await self._watched(is_admin=is_admin)
        status = status_of(self.fleet, self.rollouts)
        made = self._made(status, pieces, lines, is_admin=is_admin, may_change=may_change)
        self._looks[kind] = (beat, made)
        return made

    def listen(self, is_welcome: Callable[[], bool], *, is_admin: bool, may_change: bool) -> AsyncIterator[bytes]:
        """Return events as text/event-stream; they end when the gateway drains, or he is welcome no longer.

        Raises BusyError where too many listen.
        """
        if self.listeners >= MOST_LISTENERS:
            raise BusyError(f"{self.listeners} listen to this page already", int(STEP_S))
        return self._told(is_welcome, is_admin=is_admin, may_change=may_change)

    async def _told(self, is_welcome: Callable[[], bool], *, is_admin: bool, may_change: bool) -> AsyncIterator[bytes]:
        if self.listeners >= MOST_LISTENERS:
            return
        self.listeners += 1
        sent: dict[str, str] = {}
        quiet_since, beat = time.monotonic(), -1
        try:
            yield b"retry: 3000\n\n"
            while is_welcome() and not self.is_draining():
                woken = self._woken
                if self._beat != beat:
                    beat = self._beat
                    look = await self.look(is_admin=is_admin, may_change=may_change)
                    pieces = {"shape": look.shape, **look.pieces}
                    changed = [(name, text) for name, text in pieces.items() if sent.get(name) != text]
                    sent = pieces
                    if changed:
                        quiet_since = time.monotonic()
                        yield b"".join(_event(name, text) for name, text in changed)
                if time.monotonic() - quiet_since > HEARTBEAT_S:
                    quiet_since = time.monotonic()
                    yield b": still here\n\n"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), POLL_S)
        finally:
            self.listeners -= 1

    async def _lines(self) -> tuple[Line, ...] | str:
        try:
            return await asyncio.to_thread(self.fleet.records.last, LINES)
        except TersorError as error:
            return str(error)

    async def _watched(self, *, is_admin: bool) -> dict[str, str]:
        """Return the pieces of the watch; what befell a model may name files, and is for admins."""
        watched, found = self.watched, {"alerts": str(self.watched.alerts())}
        happenings = await watched.happenings() if is_admin else None
        for index, (name, plan) in enumerate(self.fleet.deployment.models.items()):
            trial = self.rollouts.trials.get(name)
            found[f"figures-{index}"] = await watched.figures(name, plan, trial.candidate if trial else "")
            befell = [] if happenings is None else [watched.befell(name, happenings)]
            found[f"watch-{index}"] = join([*befell, watched.drift(name)])
        return found

    def _made(
        self,
        status: Mapping[str, Any],
        watched: Mapping[str, str],
        lines: tuple[Line, ...] | str | None,
        *,
        is_admin: bool,
        may_change: bool,
    ) -> Look:
        models, actions = status["models"], status["actions"]
        names = tuple(model["name"] for model in models)
        pieces: dict[str, str] = {"overview": _overview(models, actions, may_change=may_change), **watched}
        for index, model in enumerate(models):
            shown = model if is_admin else _without_names(model)
            figures = self.samples.figures(model["name"])
            pieces[f"model-{index}"] = model_section(index, shown, figures, actions, may_change=may_change)
        if lines is not None:
            pieces["audit"] = _audit(lines)
        series = {**self.samples.series(names), "minutes": self.watched.minutes(self.fleet.deployment.models)}
        pieces["series"] = json.dumps(series, separators=(",", ":"))
        shape = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
        return Look(shape, names, pieces)


def frame(look: Look) -> Markup:
    """Return all pieces in their places."""
    live = {"sse_swap": "overview", "id": "overview"}
    return tag(
        "div",
        tag("div", Markup(look.pieces["overview"]), **live),
        tag(
            "section",
            tag("h2", "Alerts", id="alerts"),
            _piece(look, "alerts"),
            aria_labelledby="alerts",
            class_="first",
        ),
        tag("div", sse_swap="shape", data_shape=look.shape, id="shape", hidden=""),
        tag("div", sse_swap="series", id="series", hidden=""),
        *(
            tag(
                "section",
                tag("h2", name, id=f"m{index}"),
                tag("div", Markup(look.pieces[f"model-{index}"]), sse_swap=f"model-{index}"),
                charts(index, name),
                tag("h3", "The last hour"),
                _piece(look, f"figures-{index}"),
                minute_charts(index, name),
                tag("h3", "What befell it, and drift"),
                _piece(look, f"watch-{index}"),
                aria_labelledby=f"m{index}",
            )
            for index, name in enumerate(look.models)
        ),
        tag("section", tag("h2", "History"), tag("div", Markup(look.pieces["audit"]), sse_swap="audit"))
        if "audit" in look.pieces
        else None,
    )


def _piece(look: Look, name: str) -> Markup:
    return tag("div", Markup(look.pieces[name]), sse_swap=name, class_="watched")


def _overview(models: list[Mapping[str, Any]], actions: Mapping[str, Any], *, may_change: bool) -> Markup:
    serving = sum(model["state"] == "serving" for model in models)
    down = [str(model["name"]) for model in models if _is_down(model)]
    words = [f"{serving} of {len(models)} models serve as they should"]
    words += [f"nobody answers for {', '.join(down)}"] if down else []
    at = datetime.now(UTC).strftime("%H:%M:%S")
    state = "serving" if serving == len(models) and not down else "rolled back"
    links = [action_link(name, None, identity=f"act-{name}") for name, row in actions.items() if not row["takes_model"]]
    return tag(
        "div",
        tag("p", badge(state) if state == "serving" else badge("not all"), " ", "; ".join(words), ". ",
            tag("span", f"As of {at} UTC.", class_="soft")),
        tag("div", *links, class_="buttons", role="group", aria_label="Orders for all models") if may_change else None,
    )  # fmt: skip


def _without_names(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model without who ordered what and why, which admins alone see."""
    variants = [{**one, "registered": None} for one in model["variants"]]
    rollout = {**(model.get("rollout") or {}), "since": None, "history": None}
    return {**model, "since": None, "variants": variants, "rollout": rollout if model.get("rollout") else None}


def _is_down(model: Mapping[str, Any]) -> bool:
    return not any(variant["state"] == "ready" for variant in model["variants"])


def _audit(lines: tuple[Line, ...] | str) -> Markup:
    if isinstance(lines, str):
        return tag("p", lines, class_="warning")
    if not lines:
        return tag("p", "Nobody has changed anything yet.", class_="note")
    ended, rows = set[tuple[str, ...]](), []
    for line in lines:
        order = (line.who, line.origin, line.what, line.subject)
        if line.result == "begun" and order in ended:
            ended.discard(order)  # what became of it stands above
            continue
        if line.result in ("done", "failed"):
            ended.add(order)
        at = line.at[:19].replace("T", " ")
        rows.append([at, line.who, line.what, line.subject, line.result, line.reason or "–"])
    columns = ["when, UTC", "who", "what", "model", "result", "reason"]
    return table(f"The last {len(rows)} entries of the audit log", columns, rows)


def _event(name: str, text: str) -> bytes:
    data = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"event: {name}\n{data}\n".encode(errors="replace")

"""What runs beside requests: every few seconds figures are looked at, each minute written down, each hour compared.

Nothing of it may keep a request waiting or end the gateway: what blocks runs in a thread, what fails is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tersor import __version__
from tersor.core.errors import TersorError
from tersor.deploy.alerting.alarms import Alarms
from tersor.deploy.alerting.book import Alert
from tersor.deploy.alerting.plan import AUTO
from tersor.deploy.alerting.rules import LEAST_REQUESTS, WINDOW_S
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.recording.cells import Cell, figures
from tersor.deploy.gateway.recording.drifting import Drifting, Key
from tersor.deploy.gateway.recording.incidents import DRIFT, Incidents, drift_row, drift_rows
from tersor.deploy.gateway.recording.memory import resident_bytes
from tersor.deploy.gateway.recording.queued import read_queued, waiting
from tersor.deploy.gateway.recording.recorder import MINUTE_S, MINUTES
from tersor.deploy.gateway.recording.refresh import Refresh, commands
from tersor.deploy.gateway.recording.store import Happening, Store
from tersor.targets.memory import machine_bytes

__all__ = ["Watch"]

SAVE_S = 60.0
RESTARTS_S = 900.0
REFRESHED = "refresh run"
"""What the record calls a refresh that has run, well or not."""
SHARES = ("error_share", "fallback_share", "latency_p99_s")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Watch:
    """The watch of one gateway; `models` returns those that serve now, `tried` the candidates beside them.

    drifts  what the last window of each side showed, as the record keeps it
    Making it raises what `Alarms` raises.
    reload  has the deployment read anew, after a refresh has changed it
    is_tried  whether the rollout of a model is under way: refreshes wait until it is not
    """

    deployment: Deployment
    metrics: Metrics
    models: Callable[[], Mapping[str, Served]]
    tried: Callable[[], Iterable[Served]] = tuple
    save_s: float = SAVE_S
    reload: Callable[[], None] = lambda: None
    is_tried: Callable[[str], bool] = lambda _model: False
    alarms: Alarms = field(init=False)
    drifting: Drifting = field(init=False)
    incidents: Incidents = field(init=False)
    drifts: dict[Key, Mapping[str, Any]] = field(default_factory=dict, init=False)
    _starts: dict[tuple[str, str], list[tuple[float, int]]] = field(default_factory=dict, init=False)
    _seen_before: set[tuple[str, str]] = field(default_factory=set, init=False)
    _refreshing: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        plan = self.plan = self.deployment.monitor
        self.recorder = self.metrics.recorder
        self.alarms, self.refresh = Alarms(plan), Refresh(plan.refresh, plan.refresh_every_s)
        self.incidents = Incidents(self.metrics, self.recorder.clock)
        self.refresh.file = self.deployment.file

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Store]:
        """Watch, and yield the record; MissingError where that or the references cannot be had.

        What was counted is on the disk when this ends, and the record is closed.
        """
        store = await asyncio.to_thread(Store, Path(self.deployment.record))
        ended, tasks = asyncio.Event(), list[asyncio.Task[None]]()
        try:
            await asyncio.to_thread(store.fill, self.recorder)
            self.drifting = await asyncio.to_thread(Drifting.of, self.plan, self.recorder, store)
            self.alarms.restore(await asyncio.to_thread(store.get, "alerts"))
            for alert in self.alarms.book.alerts.values():
                self.metrics.alerts.labels(alert.model, alert.variant, alert.rule).set(1)
            self.refresh.go_on(await asyncio.to_thread(store.last, REFRESHED))
            self.drifts.update(drift_rows(await asyncio.to_thread(store.get, DRIFT)))
            self.metrics.machine.set(machine_bytes() or 0)
            primaries = {name: served.plan.primary for name, served in self.models().items()}
            began = {"version": __version__, "primaries": primaries}
            await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "gateway began", "", began))
            work: tuple[tuple[Callable[[], float], Callable[[Store], Awaitable[None]]], ...] = (
                (lambda: self.alarms.plan.look_every_s, self._look),
                (lambda: self.save_s, self._save),
                (lambda: self.plan.drift_every_s, self._compare),
            )
            tasks = [asyncio.create_task(self._every(seconds, do, store, ended)) for seconds, do in work]
            yield store
        finally:
            ended.set()  # what is being looked at is written down first
            for task in self._refreshing:
                task.cancel()
            await asyncio.gather(*tasks, *self._refreshing, return_exceptions=True)
            try:
                await self._save(store)
                await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "gateway ended", "", {}))
            except Exception:
                _log.exception("the record was not saved")
            await asyncio.to_thread(self.alarms.close)
            store.close()

    async def _every(
        self, seconds: Callable[[], float], do: Callable[[Store], Awaitable[None]], store: Store, ended: asyncio.Event
    ) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds()):
                    await ended.wait()
            if ended.is_set():
                return
            try:
                await do(store)
            except Exception:  # the next time may go well; requests are answered meanwhile
                _log.exception("the watch failed")

    # Figures and alerts

    async def _look(self, store: Store) -> None:
        """Look at every variant, and tell of the alerts that changed."""
        now, moment, models = time.monotonic(), self.recorder.clock(), self.models()
        seen = {
            (name, variant.name): self._seen(name, served, variant.name, now, moment)
            for name, served in models.items()
            for variant in served.variants.values()
        }
        for trial in self.tried():
            candidate = trial.variants[trial.plan.primary]
            self.recorder.holds(trial.name, candidate.name, resident_bytes(getattr(candidate.engine, "pid", None)))
        untold = self.alarms.untold
        changed = self.alarms.look(now, moment, seen)
        for alert in changed:
            self.metrics.alerts.labels(alert.model, alert.variant, alert.rule).set(alert.state == "firing")
        for gone in self._seen_before - seen.keys():  # what nobody sets any more would stay as it was
            self.metrics.forget(*gone)
        self._seen_before = set(seen)
        if befell := self.incidents.look([*models.values(), *self.tried()]):
            await asyncio.to_thread(store.happen, *befell)
        if changed or self.alarms.untold != untold:
            rows = [Happening(moment, f"alert {one.state}", one.model, one.to_object()) for one in changed]
            # Together: a kill in between would let a restart tell of the same alert again, or never of its end.
            await asyncio.to_thread(store.happen, *rows, alerts=self.alarms.to_object())
        for alert in self.alarms.book.alerts.values():
            if (alert.rule, alert.state) == ("InputDrift", "firing") and alert.model in models:
                self._wish(alert, models[alert.model], store, is_new=alert in changed)
        for model in await asyncio.to_thread(waiting, self.deployment.record):
            if model in models and self.refresh.takes_up(model, moment, is_tried=self.is_tried(model)):
                self._begin(self._take_up(model, store))

    def _seen(self, name: str, served: Served, variant: str, now: float, moment: float) -> dict[str, float | None]:
        """The figures of a variant: of five minutes, those that come rarely of an hour.

        now     of a clock that never jumps
        moment  Unix seconds, which minutes are named by
        """
        engine = served.variants[variant].engine
        held = resident_bytes(getattr(engine, "pid", None))
        self.recorder.holds(name, variant, held)
        self.metrics.memory.labels(name, variant).set(held)
        record = self.recorder.records[name, variant]
        found = figures(record.since(moment - WINDOW_S), WINDOW_S)
        if (found["requests"] or 0) < LEAST_REQUESTS:
            found |= dict.fromkeys(SHARES)
        found |= self._judged(name, variant, record.since(moment - MINUTES * MINUTE_S))
        machine = machine_bytes() or 0
        found["memory_share"] = held / machine if held and machine else None
        found["engine_down"] = float(not served.variants[variant].is_ready)
        found["restarts"] = self._restarts(name, variant, served.variants[variant].starts, now)
        found["input_drift"] = self._input_drift(name) if variant == served.plan.primary else None
        found["output_drift"] = self.drifting.flag("output", name, variant)
        return found

    def _input_drift(self, model: str) -> float | None:
        """Whether inputs drifted: in themselves, or in the activations that they cause; None: nobody has looked."""
        flag, layers = self.drifting.flag("input", model, ""), self.recorder.clipping.get(model)
        return flag if layers is None else max(flag or 0.0, float(bool(layers)))

    def _judged(self, name: str, variant: str, hour: Cell) -> dict[str, float | None]:
        """The shares of answers that were found right, where enough were looked at."""
        shares = figures(hour, MINUTES * MINUTE_S)
        found: dict[str, float | None] = {}
        for figure, count, gauge in (
            ("agreement", hour.compared, self.metrics.agreement),
            ("agreement_floor", hour.compared if hour.floors else 0, self.metrics.floor),
            ("apart", hour.measured, self.metrics.apart),
            ("accuracy", hour.labelled, self.metrics.accuracy),
        ):
            share = found[figure] = shares[figure] if count >= LEAST_REQUESTS else None
            if share is not None:
                gauge.labels(name, variant).set(share)
            else:  # a share of an hour ago would stay there for ever
                with contextlib.suppress(KeyError):
                    gauge.remove(name, variant)
        return found

    def _restarts(self, name: str, variant: str, starts: int, now: float) -> float:
        """How often an engine was loaded in the last 15 minutes; its first time does not count."""
        known = self._starts.setdefault((name, variant), [(now, starts)])
        if known[-1][1] != starts:
            known.append((now, starts))
        while len(known) > 1 and known[1][0] <= now - RESTARTS_S:
            del known[0]
        return float(max(0, starts - known[0][1]))

    def _wish(self, alert: Alert, served: Served, store: Store, *, is_new: bool) -> None:
        """Have the model made anew, or write down how; while inputs drift on it is tried again when it is due."""
        is_run = bool(self.plan.refresh) and self.refresh.may(alert.model, self.recorder.clock())
        if not (is_new or is_run):
            return
        layers = [f"activations of {layer}" for layer in self.recorder.clipping.get(alert.model, ())]
        features = (*self.drifting.drifted("input", alert.model, ""), *layers)
        told = {
            "features": list(features),
            "commands": list(commands(alert.model, served.plan, self.deployment)),
        }
        _log.warning("refresh wanted of %s: %s", alert.model, "; ".join(told["commands"]))
        self._begin(self._refresh(alert.model, features, told, store, is_run=is_run))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a refresh run beside everything else."""
        task = asyncio.create_task(work)
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)

    async def _refresh(
        self, model: str, features: Sequence[str], told: Mapping[str, Any], store: Store, *, is_run: bool
    ) -> None:
        await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "refresh wanted", model, told))
        if is_run:
            code = await self.refresh.run(model, features)
            await self._has_run(model, self.plan.refresh, code, store)

    async def _take_up(self, model: str, store: Store) -> None:
        """Run a refresh that has waited for a rollout."""
        try:
            entry = await asyncio.to_thread(read_queued, self.deployment.record, model)
        except TersorError as error:
            _log.error("refresh of %s: %s", model, error)
            return
        if entry is not None:
            _log.warning("refresh of %s: the rollout of %s is over", model, entry.candidate)
            code = await self.refresh.run(model, (), (AUTO,), entry.who)
            await self._has_run(model, (AUTO,), code, store)

    async def _has_run(self, model: str, words: Sequence[str], code: int | None, store: Store) -> None:
        details = {"command": list(words), "exit_code": code}
        await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), REFRESHED, model, details))
        if code == 0 and tuple(words) == (AUTO,):
            self.reload()

    # What is written down

    async def _save(self, store: Store) -> None:
        await asyncio.to_thread(store.save, self.recorder)
        await asyncio.to_thread(self.incidents.save, store)

    async def _compare(self, store: Store) -> None:
        """Compare what came since the last time with what is usual."""
        found = await asyncio.to_thread(self.drifting.look, store)
        rows = {key: drift_row(*key, one, self.recorder.clock()) for key, one in found.items()}
        if rows:
            self.drifts.update(rows)
            drifted = [Happening(row["at"], "drifted", row["model"], row) for row in rows.values() if row["drifted"]]
            await asyncio.to_thread(store.put, DRIFT, list(self.drifts.values()))
            await asyncio.to_thread(store.happen, *drifted)
        for (side, model, variant), findings in found.items():
            shown = variant or self._primary(model)
            self.metrics.drifted.labels(model, shown, side).set(bool(findings.drifted))
            for feature, one in findings.features.items():
                self.metrics.distance.labels(model, shown, side, feature).set(one.js)

    def _primary(self, model: str) -> str:
        served = self.models().get(model)
        return "" if served is None else served.plan.primary

"""What runs beside requests: every few seconds figures are looked at, each minute written down, each hour compared.

Nothing of it may keep a request waiting or end the gateway: what blocks runs in a thread, what fails is logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tersor import __version__
from tersor.core.errors import MissingError
from tersor.deploy.alerting.book import Alert, Book
from tersor.deploy.alerting.delivery import Delivery
from tersor.deploy.alerting.mail import Mail
from tersor.deploy.alerting.plan import MonitorPlan
from tersor.deploy.alerting.rules import LEAST_REQUESTS, WINDOW_S
from tersor.deploy.alerting.webhook import Webhook
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.recording.cells import figures
from tersor.deploy.gateway.recording.drifting import Drifting, Key
from tersor.deploy.gateway.recording.incidents import DRIFT, Incidents, drift_row, drift_rows
from tersor.deploy.gateway.recording.memory import machine_bytes, resident_bytes
from tersor.deploy.gateway.recording.recorder import MINUTE_S, MINUTES
from tersor.deploy.gateway.recording.refresh import Refresh, commands
from tersor.deploy.gateway.recording.store import Happening, Store

__all__ = ["Watch"]

LOOK_S, SAVE_S = 5.0, 60.0
RESTARTS_S = 900.0
SHARES = ("error_share", "fallback_share", "latency_p99_s")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Watch:
    """The watch of one gateway; `models` returns those that serve now, `tried` the candidates beside them.

    drifts  what the last window of each side showed, as the record keeps it
    """

    deployment: Deployment
    metrics: Metrics
    models: Callable[[], Mapping[str, Served]]
    tried: Callable[[], Iterable[Served]] = tuple
    look_s: float = LOOK_S
    save_s: float = SAVE_S
    book: Book = field(init=False)
    drifting: Drifting = field(init=False)
    incidents: Incidents = field(init=False)
    drifts: dict[Key, Mapping[str, Any]] = field(default_factory=dict, init=False)
    _starts: dict[tuple[str, str], list[tuple[float, int]]] = field(default_factory=dict, init=False)
    _refreshing: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        plan = self.plan = self.deployment.monitor
        self.recorder = self.metrics.recorder
        self.book, self.refresh = Book(plan.limits or {}), Refresh(plan.refresh, plan.refresh_every_s)
        self.incidents = Incidents(self.metrics, self.recorder.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch; MissingError where the record or the references cannot be had, or a secret is not in the environment.

        What was counted is on the disk when this ends.
        """
        store = await asyncio.to_thread(Store, Path(self.deployment.record))
        delivery = _delivery(self.plan)
        tasks: list[asyncio.Task[None]] = []
        try:
            await asyncio.to_thread(store.fill, self.recorder)
            self.drifting = await asyncio.to_thread(Drifting.of, self.plan, self.recorder, store)
            self.book.restore(await asyncio.to_thread(store.get, "alerts"))
            self.drifts.update(drift_rows(await asyncio.to_thread(store.get, DRIFT)))
            self.metrics.machine.set(machine_bytes())
            primaries = {name: served.plan.primary for name, served in self.models().items()}
            began = {"version": __version__, "primaries": primaries}
            await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "gateway began", "", began))
            work = ((self.look_s, self._look), (self.save_s, self._save), (self.plan.drift_every_s, self._compare))
            tasks = [asyncio.create_task(self._every(seconds, do, store, delivery)) for seconds, do in work]
            yield
        finally:
            for task in (*tasks, *self._refreshing):
                task.cancel()
            await asyncio.gather(*tasks, *self._refreshing, return_exceptions=True)
            try:
                await self._save(store, delivery)
                await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "gateway ended", "", {}))
            except Exception:
                _log.exception("the record was not saved")
            await asyncio.to_thread(delivery.close)
            store.close()

    async def _every(self, seconds: float, do: Callable[..., Any], store: Store, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await do(store, delivery)
            except Exception:  # the next time may go well; requests are answered meanwhile
                _log.exception("the watch failed")

    # Figures and alerts

    async def _look(self, store: Store, delivery: Delivery) -> None:
        """Look at every variant, and tell of the alerts that changed."""
        moment, models = self.recorder.clock(), self.models()
        seen = {
            (name, variant.name): self._seen(name, served, variant.name, moment)
            for name, served in models.items()
            for variant in served.variants.values()
        }
        for trial in self.tried():
            candidate = trial.variants[trial.plan.primary]
            self.recorder.holds(trial.name, candidate.name, resident_bytes(getattr(candidate.engine, "pid", None)))
        changed = self.book.look(moment, seen)
        for alert in changed:
            self.metrics.alerts.labels(alert.model, alert.variant, alert.rule).set(alert.state == "firing")
            if not any(one.covers(alert.rule, alert.model, moment) for one in self.plan.silences):
                delivery.tell(alert)
        rows = [Happening(moment, f"alert {one.state}", one.model, one.to_object()) for one in changed]
        if rows := [*self.incidents.look([*models.values(), *self.tried()]), *rows]:
            await asyncio.to_thread(store.happen, *rows)
        if changed:
            await asyncio.to_thread(store.put, "alerts", self.book.to_object())
        for alert in changed:
            if (alert.rule, alert.state) == ("InputDrift", "firing") and alert.model in models:
                self._wish(alert, models[alert.model], store)

    def _seen(self, name: str, served: Served, variant: str, moment: float) -> dict[str, float | None]:
        """The figures of a variant: of five minutes, those that come rarely of an hour."""
        engine = served.variants[variant].engine
        held = resident_bytes(getattr(engine, "pid", None))
        self.recorder.holds(name, variant, held)
        self.metrics.memory.labels(name, variant).set(held)
        record = self.recorder.records[name, variant]
        found = figures(record.since(moment - WINDOW_S), WINDOW_S)
        if (found["requests"] or 0) < LEAST_REQUESTS:
            found |= dict.fromkeys(SHARES)
        hour = figures(record.since(moment - MINUTES * MINUTE_S), MINUTES * MINUTE_S)
        for figure, gauge in (("agreement", self.metrics.agreement), ("accuracy", self.metrics.accuracy)):
            found[figure] = hour[figure]
            if (share := hour[figure]) is not None:
                gauge.labels(name, variant).set(share)
        machine = machine_bytes()
        found["memory_share"] = held / machine if held and machine else None
        found["engine_down"] = float(not served.variants[variant].is_ready)
        found["restarts"] = self._restarts(name, variant, served.variants[variant].starts, moment)
        found["input_drift"] = self.drifting.flag("input", name, "") if variant == served.plan.primary else None
        found["output_drift"] = self.drifting.flag("output", name, variant)
        return found

    def _restarts(self, name: str, variant: str, starts: int, moment: float) -> float:
        """How often an engine was loaded in the last 15 minutes; its first time does not count."""
        known = self._starts.setdefault((name, variant), [(moment, starts)])
        if known[-1][1] != starts:
            known.append((moment, starts))
        while len(known) > 1 and known[1][0] <= moment - RESTARTS_S:
            del known[0]
        return float(max(0, starts - known[0][1]))

    def _wish(self, alert: Alert, served: Served, store: Store) -> None:
        """Have the model made anew, or write down how."""
        moment, features = self.recorder.clock(), self.drifting.drifted("input", alert.model, "")
        told = {
            "features": list(features),
            "commands": list(commands(alert.model, served.plan, self.deployment.registry)),
        }
        is_run = bool(self.plan.refresh) and self.refresh.may(alert.model, moment)
        _log.warning("refresh wanted of %s: %s", alert.model, "; ".join(told["commands"]))
        task = asyncio.create_task(self._refresh(alert.model, features, told, store, is_run=is_run))
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)

    async def _refresh(
        self, model: str, features: Sequence[str], told: Mapping[str, Any], store: Store, *, is_run: bool
    ) -> None:
        await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "refresh wanted", model, told))
        if is_run:
            code = await self.refresh.run(model, features)
            details = {"command": list(self.plan.refresh), "exit_code": code}
            await asyncio.to_thread(store.happen, Happening(self.recorder.clock(), "refresh run", model, details))

    # What is written down

    async def _save(self, store: Store, delivery: Delivery) -> None:
        del delivery
        await asyncio.to_thread(store.save, self.recorder)
        await asyncio.to_thread(self.incidents.save, store)

    async def _compare(self, store: Store, delivery: Delivery) -> None:
        """Compare what came since the last time with what is usual."""
        del delivery
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


def _delivery(plan: MonitorPlan) -> Delivery:
    url = os.environ.get(plan.webhook_env, "") if plan.webhook_env else ""
    if plan.webhook_env and not url:
        raise MissingError(f"monitor.webhook_env: the environment variable {plan.webhook_env} holds no URL")
    return Delivery(Webhook(url) if url else None, Mail(plan.mail) if plan.mail else None)

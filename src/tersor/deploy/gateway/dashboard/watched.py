"""What the page says of the watch: alerts, figures beside full precision, what befell a model, drift.

Tables are those of the report. Figures with their ranges cost some milliseconds: they are made in a thread, and anew
after FRESH_S at the earliest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tersor.core.errors import TersorError
from tersor.core.quantities import number
from tersor.deploy.alerting.book import Alert
from tersor.deploy.alerting.plan import Silence
from tersor.deploy.alerting.rules import RULES
from tersor.deploy.config import ModelPlan
from tersor.deploy.gateway.dashboard.minutes import Points, minutes_of
from tersor.deploy.gateway.recording.store import Happening, read_happenings
from tersor.deploy.gateway.recording.watch import Watch
from tersor.deploy.gateway.reporting.incidents import incidents_of, time_of
from tersor.deploy.gateway.reporting.rendering import drawn
from tersor.deploy.gateway.reporting.report import last_hour
from tersor.deploy.gateway.reporting.sections import drift_blocks, figure_table, incident_table, span
from tersor.pages.markup import Markup, join, tag

__all__ = ["Watched", "alert_list"]

FRESH_S = 10.0
MOST_HAPPENINGS, MOST_INCIDENTS = 500, 8
ORDER = {"critical": 0, "warning": 1}


@dataclass(eq=False)
class Watched:
    """The pieces of the page that are of the watch."""

    watch: Watch
    _figures: dict[str, tuple[float, Markup]] = field(default_factory=dict, init=False)
    _points: Points = field(default_factory=dict, init=False)

    def alerts(self) -> Markup:
        """Return the alerts that fire and those that are pending."""
        moment = self.watch.recorder.clock()
        return alert_list(self.watch.alarms.book.alerts.values(), self.watch.alarms.plan.silences, moment)

    async def happenings(self) -> tuple[Happening, ...] | str:
        """Return the last that happened, or why that cannot be read."""
        path = Path(self.watch.deployment.record)
        try:
            return tuple(await asyncio.to_thread(read_happenings, path, MOST_HAPPENINGS))
        except TersorError as error:
            return str(error)

    async def figures(self, name: str, plan: ModelPlan, candidate: str) -> Markup:
        """Return the figures of the last hour, a table a variant."""
        known = self._figures.get(name)
        if known is not None and time.monotonic() - known[0] < FRESH_S:
            return known[1]
        recorder = self.watch.recorder
        records = {variant: one for (model, variant), one in recorder.records.items() if model == name}
        make = last_hour(plan, candidate, records, recorder.clock())
        window = await asyncio.to_thread(make)
        made = join(drawn(figure_table(window, beside, plan.fallback or "")) for beside in window.variants)
        self._figures[name] = time.monotonic(), made
        return made

    def minutes(self, models: Mapping[str, ModelPlan]) -> dict[str, Any]:
        """Return what the charts of the last hour draw."""
        recorder = self.watch.recorder
        orders = {}
        for name, plan in models.items():
            known = [
                plan.primary,
                plan.fallback,
                plan.candidate,
                *(two for one, two in recorder.records if one == name),
            ]
            orders[name] = list(dict.fromkeys(variant for variant in known if variant))
        return minutes_of(recorder.records, orders, recorder.clock(), self._points)

    def drift(self, name: str) -> Markup:
        """Return what the last window of each side showed."""
        rows = [row for row in self.watch.drifts.values() if row.get("model") == name]
        return join(map(drawn, drift_blocks(rows)))

    def befell(self, name: str, happenings: tuple[Happening, ...] | str) -> Markup:
        """Return the last incidents of a model."""
        if isinstance(happenings, str):
            return tag("p", happenings, class_="warning")
        found = incidents_of(name, happenings, self.watch.recorder.clock())
        return drawn(incident_table(found[:MOST_INCIDENTS]) or "Nothing befell this model yet.")


def alert_list(alerts: Iterable[Alert], silences: Iterable[Silence], moment: float) -> Markup:
    """Return alerts as a list, those that fire first, the worst and oldest first."""
    shown = sorted(alerts, key=lambda one: (one.state != "firing", ORDER[RULES[one.rule].severity], one.since))
    if not shown:
        return tag("p", tag("span", "✓ no alert", class_="badge pass"), " None fires, and none is pending.")
    quiet = list(silences)
    return tag("ul", *(_alert(one, quiet, moment) for one in shown), class_="alerts")


def _alert(alert: Alert, silences: list[Silence], moment: float) -> Markup:
    rule, is_firing = RULES[alert.rule], alert.state == "firing"
    tone = ("fail" if rule.severity == "critical" else "inconclusive") if is_firing else "quiet"
    word = f"✗ {rule.severity}" if is_firing else "… pending"
    side = "below" if rule.is_below else "above"
    about = f" of {alert.model}/{alert.variant}, since "
    head = [
        tag("span", word, class_=f"badge {tone}"), " ", tag("strong", alert.rule), about,
        tag("time", time_of(alert.since)[11:19], datetime=time_of(alert.since)),
        f" UTC ({_ago(moment - alert.since)})",
    ]  # fmt: skip
    if any(one.covers(alert.rule, alert.model, moment) for one in silences):
        head.append(tag("span", " silenced: nobody is told", class_="soft"))
    numbers = f"{alert.value:.4g}, {side} {number(alert.limit)}"
    return tag(
        "li",
        tag("p", *head),
        tag("p", f"{rule.summary}: {rule.figure.replace('_', ' ')} is {numbers}.", class_="note"),
        tag("p", tag("strong", "Do: "), rule.remedy),
        class_=f"alert {tone}",
    )


def _ago(seconds: float) -> str:
    """A length that changes once a minute at most, so that the page is not sent anew for it."""
    return (
        "under a minute" if seconds < 60 else f"{seconds // 60:.0f} min" if seconds < 7200 else span(seconds // 60 * 60)
    )

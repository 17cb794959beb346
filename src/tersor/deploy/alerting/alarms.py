"""The alerts of one gateway as its deployment wants them, which may change while it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tersor.core.errors import MissingError, SchemeError
from tersor.deploy.alerting.book import Alert, Book
from tersor.deploy.alerting.delivery import Delivery
from tersor.deploy.alerting.mail import Mail
from tersor.deploy.alerting.plan import MonitorPlan
from tersor.deploy.alerting.webhook import Webhook

__all__ = ["Alarms"]

KEY = ("alert", "model", "variant")
"""Of an alert, in JSON."""


@dataclass(eq=False)
class Alarms:
    """The book of a gateway, and whom it tells; MissingError or SchemeError where a secret cannot be used."""

    plan: MonitorPlan
    book: Book = field(init=False)
    delivery: Delivery = field(init=False)
    _untold: set[tuple[str, str, str]] = field(default_factory=set, init=False)
    """What fires in silence: it is told when that ends first."""

    def __post_init__(self) -> None:
        self.book, self.delivery = Book(self.plan.rules), _delivery(self.plan)

    def look(
        self, now: float, at: float, seen: Mapping[tuple[str, str], Mapping[str, float | None]]
    ) -> tuple[Alert, ...]:
        """Return what `Book.look` returns, and tell of what is not silenced."""
        changed = self.book.look(now, at, seen)
        for alert in changed:
            if self._is_silent(alert, at):
                self._untold.add(alert.key)
            elif alert.state == "firing" or alert.key not in self._untold:
                self.delivery.tell(alert)
        self._untold &= self.book.alerts.keys()
        for key in [one for one in self._untold if not self._is_silent(self.book.alerts[one], at)]:
            self._untold.discard(key)
            self.delivery.tell(self.book.alerts[key])
        return changed

    @property
    def untold(self) -> frozenset[tuple[str, str, str]]:
        """What fires, and nobody was told of for a silence."""
        return frozenset(self._untold)

    def to_object(self) -> list[dict[str, Any]]:
        """Return the alerts that are there for JSON, and whether somebody was told of them."""
        return [{**alert.to_object(), "told": key not in self._untold} for key, alert in self.book.alerts.items()]

    def restore(self, given: object) -> None:
        """Go on with what fired when `to_object` was asked; as `Book.restore`."""
        self.book.restore(given)
        rows = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
        silent = {tuple(row.get(word) for word in KEY) for row in rows if row.get("told") is False}
        self._untold = {key for key in self.book.alerts if key in silent}

    def prepared(self, plan: MonitorPlan) -> Delivery:
        """Return who tells by another plan; raises what is wrong with it, and changes nothing."""
        told = (plan.webhook_env, plan.mail)
        return self.delivery if told == (self.plan.webhook_env, self.plan.mail) else _delivery(plan)

    def change(self, plan: MonitorPlan, delivery: Delivery) -> None:
        """Go by another plan, with what `prepared` made of it: what fires goes on, by the new limits."""
        self.plan, self.book.rules = plan, plan.rules
        if delivery is not self.delivery:
            self.delivery.end()
            self.delivery = delivery

    def close(self) -> None:
        """Tell no more; what waits is tried once again. Blocks for a second at most."""
        self.delivery.close()

    def _is_silent(self, alert: Alert, at: float) -> bool:
        return any(one.covers(alert.rule, alert.model, at) for one in self.plan.silences)


def _delivery(plan: MonitorPlan) -> Delivery:
    """Return who tells; MissingError where the environment lacks a secret, SchemeError where it is no URL."""
    url = os.environ.get(plan.webhook_env, "") if plan.webhook_env else ""
    if plan.webhook_env and not url:
        raise MissingError(f"monitor.webhook_env: the environment variable {plan.webhook_env} holds no URL")
    try:
        return Delivery(Webhook(url) if url else None, Mail(plan.mail) if plan.mail else None)
    except SchemeError as error:
        raise SchemeError(f"monitor.webhook_env, {plan.webhook_env}: {error}") from None

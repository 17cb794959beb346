"""The state of every alert over time: pending, firing, over. Pure: time and figures are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from tersor.deploy.alerting.rules import RULES, Rule

__all__ = ["Alert", "Book", "State"]

State: TypeAlias = Literal["pending", "firing", "resolved"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert on one variant of a model.

    since  Unix seconds: that it lasts, and from `firing` on that it fires
    value  of the figure, when it was last looked at
    """

    rule: str
    model: str
    variant: str
    state: State
    since: float
    value: float
    limit: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about."""
        return self.rule, self.model, self.variant

    def text(self) -> str:
        """Return it in one line, for people."""
        rule, word = RULES[self.rule], "below" if RULES[self.rule].is_below else "above"
        if self.state == "resolved":
            return f"over: {self.rule} of {self.model}/{self.variant}, {rule.figure} is {self.value:.4g}"
        about = f"{rule.summary}: {rule.figure} is {self.value:.4g}, {word} {self.limit:.4g}"
        return f"{rule.severity}: {self.rule} of {self.model}/{self.variant}. {about}; {rule.remedy}"

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        rule = RULES[self.rule]
        return {
            "alert": self.rule, "model": self.model, "variant": self.variant, "state": self.state,
            "severity": rule.severity, "since": self.since, "figure": rule.figure, "value": self.value,
            "limit": self.limit, "summary": rule.summary, "remedy": rule.remedy,
        }  # fmt: skip


@dataclass(eq=False)
class Book:
    """All alerts that are pending or fire, by `rules`, which may be replaced at any time."""

    rules: Mapping[str, Rule] = field(default_factory=lambda: RULES)
    alerts: dict[tuple[str, str, str], Alert] = field(default_factory=dict)
    _began: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Since when each lasts, by the clock that never jumps."""

    def look(
        self, now: float, at: float, seen: Mapping[tuple[str, str], Mapping[str, float | None]]
    ) -> tuple[Alert, ...]:
        """Take figures, model and variant → name → value; return the alerts that begin to fire now, or end.

        now  seconds of a clock that never jumps: how long something lasts is told by it alone
        at   Unix seconds, which are shown
        A figure that nothing tells of any more (None) keeps a firing alert as it is, and ends one that is pending; a
        variant that is gone ends its alerts.
        """
        changed = []
        for key in [one for one in self.alerts if one[1:] not in seen]:
            old = self._drop(key)
            if old.state == "firing":
                changed.append(Alert(*key, "resolved", at, old.value, old.limit))
        for (model, variant), found in seen.items():
            for rule in self.rules.values():
                new = self._look(rule, (rule.name, model, variant), found.get(rule.figure), now, at)
                if new is not None:
                    changed.append(new)
        return tuple(changed)

    def _look(self, rule: Rule, key: tuple[str, str, str], value: float | None, now: float, at: float) -> Alert | None:
        old = self.alerts.get(key)
        is_firing = old is not None and old.state == "firing"
        if value is None:
            if old is not None and not is_firing:
                self._drop(key)
            return None
        if not rule.is_over(value, rule.clear if is_firing else rule.limit):
            if old is not None:
                self._drop(key)
            return Alert(*key, "resolved", at, value, rule.limit) if is_firing else None
        if old is not None and is_firing:
            self.alerts[key] = replace(old, value=value, limit=rule.limit)
            return None
        if now - self._began.setdefault(key, now) < rule.for_s:
            self.alerts[key] = Alert(*key, "pending", at if old is None else old.since, value, rule.limit)
            return None
        self.alerts[key] = fired = Alert(*key, "firing", at, value, rule.limit)
        return fired

    def _drop(self, key: tuple[str, str, str]) -> Alert:
        self._began.pop(key, None)
        return self.alerts.pop(key)

    def to_object(self) -> list[dict[str, Any]]:
        """Return those that are there for JSON."""
        return [alert.to_object() for alert in self.alerts.values()]

    def restore(self, given: object) -> None:
        """Go on with the alerts that fired when `to_object` was asked; what is no alert (any more) is left out.

        What was pending begins anew: nobody knows what was while nobody looked.
        """
        for one in given if isinstance(given, list) else ():
            try:
                alert = Alert(
                    str(one["alert"]), str(one["model"]), str(one["variant"]), one["state"],
                    float(one["since"]), float(one["value"]), float(one["limit"]),
                )  # fmt: skip
            except (KeyError, TypeError, ValueError):
                continue
            if alert.rule in self.rules and alert.state == "firing":
                self.alerts[alert.key] = alert

"""The state of every alert over time: pending, firing, over. Pure: time and figures are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """All alerts that are pending or fire; `limits`: rule → another limit than its own."""

    limits: Mapping[str, float] = field(default_factory=dict)
    alerts: dict[tuple[str, str, str], Alert] = field(default_factory=dict)

    def look(self, moment: float, seen: Mapping[tuple[str, str], Mapping[str, float | None]]) -> tuple[Alert, ...]:
        """Take figures, model and variant → name → value; return the alerts that begin to fire now, or end.

        A figure that nothing tells of any more (None) keeps a firing alert as it is, and ends one that is pending; a
        variant that is gone ends its alerts.
        """
        changed = []
        for key in [one for one in self.alerts if one[1:] not in seen]:
            old = self.alerts.pop(key)
            if old.state == "firing":
                changed.append(Alert(*key, "resolved", moment, old.value, old.limit))
        for (model, variant), found in seen.items():
            for rule in RULES.values():
                new = self._look(rule, (rule.name, model, variant), found.get(rule.figure), moment)
                if new is not None:
                    changed.append(new)
        return tuple(changed)

    def _look(self, rule: Rule, key: tuple[str, str, str], value: float | None, moment: float) -> Alert | None:
        old = self.alerts.get(key)
        limit = self.limits.get(rule.name, rule.limit)
        if value is None:
            if old is not None and old.state == "pending":
                del self.alerts[key]
            return None
        is_firing = old is not None and old.state == "firing"
        # Another limit moves where it ends along with it.
        end = limit + (rule.clear - rule.limit) * (limit / rule.limit)
        if not rule.is_over(value, end if is_firing else limit):
            if old is not None:
                del self.alerts[key]
            return Alert(*key, "resolved", moment, value, limit) if is_firing else None
        if is_firing:
            self.alerts[key] = Alert(*key, "firing", self.alerts[key].since, value, limit)
            return None
        since = moment if old is None else old.since
        if moment - since < rule.for_s:
            self.alerts[key] = Alert(*key, "pending", since, value, limit)
            return None
        self.alerts[key] = fired = Alert(*key, "firing", moment, value, limit)
        return fired

    def to_object(self) -> list[dict[str, Any]]:
        """Return those that are there for JSON."""
        return [alert.to_object() for alert in self.alerts.values()]

    def restore(self, given: object) -> None:
        """Go on with what `to_object` made; what is no alert (any more) is left out."""
        for one in given if isinstance(given, list) else ():
            try:
                alert = Alert(
                    str(one["alert"]), str(one["model"]), str(one["variant"]), one["state"],
                    float(one["since"]), float(one["value"]), float(one["limit"]),
                )  # fmt: skip
            except (KeyError, TypeError, ValueError):
                continue
            if alert.rule in RULES and alert.state in ("pending", "firing"):
                self.alerts[alert.key] = alert

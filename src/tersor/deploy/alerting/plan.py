"""What a deployment says of its watch: what is usual, whom to tell, what to do when inputs drift."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError
from tersor.deploy.alerting.rules import RULES, Rule, changed

__all__ = ["AUTO", "LIVE", "MailPlan", "MonitorPlan", "Silence"]

Security: TypeAlias = Literal["starttls", "tls", "none"]
LIVE = ("limits", "look_every_s", "silences", "webhook_env", "mail")
"""What a running gateway takes from a deployment that is reloaded."""
Percent: TypeAlias = float
AUTO = "auto"
MOST_KEPT = 100_000
CONFIDENCES = ("logits", "probabilities")
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
ADDRESS = re.compile(r"[^\s@<>,;:\"\\]{1,64}@[^\s@<>,;:\"\\]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Silence:
    """An alert that nobody is told of until then; it is still written down.

    model  empty: every model
    until  a time with its zone: 2027-01-02T03:04:05+00:00
    """

    alert: str
    until: str
    model: str = ""

    def __post_init__(self) -> None:
        if self.alert not in RULES:
            raise SchemeError(f"silences: no alert {self.alert!r:.60}; there are {', '.join(RULES)}")
        try:
            is_zoned = datetime.fromisoformat(self.until).tzinfo is not None
        except ValueError:
            is_zoned = False
        if not is_zoned:
            raise SchemeError(f"silences: until {self.until!r:.40} is no time with its zone, as 2027-01-02T03:04:05Z")

    def covers(self, alert: str, model: str, moment: float) -> bool:
        """Whether it silences an alert at a time, Unix seconds."""
        is_meant = alert == self.alert and self.model in ("", model)
        return is_meant and moment < datetime.fromisoformat(self.until).timestamp()


@dataclass(frozen=True, slots=True)
class MailPlan:
    """Where e-mail goes; the password is in the environment variable `password_env`."""

    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    security: Security = "starttls"
    user: str = ""
    password_env: str = ""

    def __post_init__(self) -> None:
        if not self.to or not all(ADDRESS.fullmatch(str(one)) for one in (self.sender, *self.to)):
            raise SchemeError("mail: sender and every one in to must be a plain address, as ops@example.org")
        if self.security not in ("starttls", "tls", "none"):
            raise SchemeError(f"mail.security: starttls, tls or none, not {self.security!r:.20}")
        if self.user and self.security == "none":
            raise SchemeError("mail: a password is sent over an encrypted connection only: security starttls or tls")
        if bool(self.user) != bool(self.password_env) or (
            self.password_env and not VARIABLE.fullmatch(self.password_env)
        ):
            raise SchemeError("mail: user needs password_env, the name of an environment variable, and the reverse")


@dataclass(frozen=True, slots=True)
class MonitorPlan:
    """All of `monitor:`.

    references     model → file of the data that it was calibrated with; without, the first 500 requests are usual
    drift_every_s  seconds from one look at drift to the next; the budget of false alarms, one in 30 days, is for them
    alarms         false alarms of drift that are accepted in 30 days
    limits         alert → another limit than the rule's own, or another {limit, for_s}
    look_every_s   seconds from one look at all alerts to the next
    silences       what nobody is told of
    webhook_env    environment variable that holds the URL which alerts are posted to; empty: none
    refresh        command that is run when inputs drift, a word each, or "auto": `tersor refresh`, and a reload; none:
                   the commands to give are written down
    refresh_every_s  least seconds from one refresh of a model to the next
    compare        requests whose answer is compared with the fallback's while nothing is rolled out, percent; 0: none
    confidence     net → "logits" or "probabilities" of classes, which its first output holds: accuracy is estimated
    clipping       requests of nets on integers whose activations are counted beyond their ranges, percent; 0: none
    keep           requests of each model that are kept beside the record, to recalibrate with; 0: none
    """

    references: Mapping[str, str]
    drift_every_s: float = 3600.0
    alarms: float = 1.0
    limits: Mapping[str, object] | None = None
    look_every_s: float = 5.0
    silences: tuple[Silence, ...] = ()
    webhook_env: str = ""
    mail: MailPlan | None = None
    refresh: tuple[str, ...] = ()
    refresh_every_s: float = 86_400.0
    compare: Percent = 0.0
    confidence: Mapping[str, str] = field(default_factory=dict)
    clipping: Percent = 0.0
    keep: int = 0

    def __post_init__(self) -> None:
        changed(self.limits or {})
        if self.keep > MOST_KEPT:
            raise SchemeError(f"keep: {MOST_KEPT:,} requests at most, not {self.keep:,}")
        for name, kind in self.confidence.items():
            if kind not in CONFIDENCES:
                raise SchemeError(f"confidence.{name}: {' or '.join(CONFIDENCES)}, not {kind!r:.40}")
        if self.webhook_env and not VARIABLE.fullmatch(self.webhook_env):
            raise SchemeError("webhook_env: the name of an environment variable is wanted, and never the URL itself")
        if not all(type(word) is str and word and "\0" not in word for word in self.refresh):
            raise SchemeError("refresh: a list of words is wanted, the program first; no shell reads it")

    @property
    def rules(self) -> Mapping[str, Rule]:
        """Every alert as it is here."""
        return changed(self.limits or {})

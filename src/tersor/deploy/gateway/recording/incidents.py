"""What befell a gateway, noticed by comparing each look with the one before: engines that were started again, breakers
that moved, windows that drifted; and by day, why the fallback answered and what sentinels found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.recording.drifting import Key
from tersor.deploy.gateway.recording.recorder import DAYS
from tersor.deploy.gateway.recording.samples import Findings
from tersor.deploy.gateway.recording.store import Happening, Store
from tersor.deploy.gateway.variants import Variant
from tersor.deploy.guard.breaker import Breaker

__all__ = ["CAUSES", "DRIFT", "Incidents", "drift_row", "drift_rows", "merged"]

CAUSES, DRIFT = "causes", "drift"
"""Documents of the record: day → model → "fallbacks" or "findings" → why → count; the last window of each feature."""
COUNTED = {"fallbacks": ("tersor_fallbacks_total", "reason"), "findings": ("tersor_findings_total", "sentinel")}
TOLD = ("open", "closed")
"""States of a breaker that are written down; probes come and go in between."""
MOST_FEATURES = 8


@dataclass(eq=False)
class Incidents:
    """Remembers what it saw last; `clock` tells Unix seconds."""

    metrics: Metrics
    clock: Callable[[], float]
    _starts: WeakKeyDictionary[Variant, int] = field(default_factory=WeakKeyDictionary, init=False)
    _moved: WeakKeyDictionary[Breaker, float] = field(default_factory=WeakKeyDictionary, init=False)
    _counted: dict[tuple[str, str, str], float] = field(default_factory=dict, init=False)

    def look(self, models: Iterable[Served]) -> list[Happening]:
        """Return what happened since the last look."""
        moment, now = self.clock(), time.monotonic()
        found = []
        for served in models:
            for variant in served.variants.values():
                known = self._starts.get(variant, 1)
                self._starts[variant] = max(variant.starts, 1)
                if variant.starts > known:
                    details = {"variant": variant.name, "times": variant.starts - known, "reason": variant.failure}
                    found.append(Happening(moment, "engine restarted", served.name, details))
            breaker = served.ladder.breaker
            since = self._moved.get(breaker, -1.0)
            for move in breaker.transitions:
                if move.at > since:
                    self._moved[breaker] = move.at
                    if move.target in TOLD:
                        details = {"variant": served.plan.primary, "reason": move.reason, "wait_s": round(move.wait_s)}
                        at = moment - (now - move.at)
                        found.append(Happening(at, f"breaker {move.target}", served.name, details))
        return found

    def save(self, store: Store) -> None:
        """Add what was counted since the last time to the day that lasts."""
        fresh: dict[tuple[str, str, str], float] = {}
        for kind, (name, label) in COUNTED.items():
            metric = self.metrics.fallbacks if kind == "fallbacks" else self.metrics.findings
            for sample in (one for family in metric.collect() for one in family.samples if one.name == name):
                key = kind, sample.labels["model"], sample.labels[label]
                # A finding is counted by variant too: all variants of a model are one here.
                fresh[key] = fresh.get(key, 0.0) + sample.value
        new = {key: int(count - self._counted.get(key, 0.0)) for key, count in fresh.items()}
        new = {key: count for key, count in new.items() if count > 0}
        if not new:
            return
        moment = datetime.fromtimestamp(self.clock(), UTC)
        store.put(CAUSES, merged(store.get(CAUSES), new, moment))
        self._counted = fresh


def merged(known: object, new: Mapping[tuple[str, str, str], int], moment: datetime) -> dict[str, Any]:
    """Return `known`, a document of CAUSES or nothing that can be read, with new counts; old days are left out.

    >>> merged(None, {("fallbacks", "m", "timeout"): 2}, datetime(2027, 1, 2, tzinfo=UTC))
    {'2027-01-02': {'m': {'fallbacks': {'timeout': 2}}}}
    """
    first, day = (moment - timedelta(days=DAYS)).date().isoformat(), moment.date().isoformat()
    days = {str(at): rows for at, rows in known.items() if str(at) >= first} if isinstance(known, dict) else {}
    models: dict[str, Any] = days.setdefault(day, {})
    for (kind, model, why), count in new.items():
        counts = models.setdefault(model, {}).setdefault(kind, {})
        counts[why] = counts.get(why, 0) + count
    return days


def drift_row(side: str, model: str, variant: str, findings: Findings, moment: float) -> dict[str, Any]:
    """Return what one window showed for JSON: its worst features, those that drifted first, then the farthest."""
    names = [name for name in findings.features if name not in findings.drifted]
    names.sort(key=lambda name: -findings.features[name].js)
    features = {
        name: {
            word: float(getattr(findings.features[name], word)) for word in ("js", "psi", "ks", "p_value", "outside")
        }
        for name in (*findings.drifted, *names)[:MOST_FEATURES]
    }
    about = {"at": moment, "side": side, "model": model, "variant": variant, "requests": findings.requests}
    return {**about, "drifted": list(findings.drifted), "features": features}


def drift_rows(document: object) -> dict[Key, Mapping[str, Any]]:
    """Return the rows of a document of DRIFT; what is none is left out."""
    rows = document if isinstance(document, list) else ()
    words = ("side", "model", "variant")
    return {tuple(one[word] for word in words): one for one in rows if isinstance(one, dict) and one.keys() >= {*words}}

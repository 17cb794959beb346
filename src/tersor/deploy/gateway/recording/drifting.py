"""Drift of what comes in and goes out, window by window, against calibration data or what came first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeAlias

from tersor.deploy.alerting.plan import MonitorPlan
from tersor.deploy.gateway.recording.recorder import DAY_S, Recorder
from tersor.deploy.gateway.recording.samples import (
    FIRST,
    Findings,
    Reference,
    Reservoir,
    compared,
    reference_of,
    reference_of_file,
)
from tersor.deploy.gateway.recording.store import Happening, Store
from tersor.deploy.monitor import FalseAlarmBudget

__all__ = ["Drifting", "Key", "Side"]

Side: TypeAlias = Literal["input", "output"]
Key: TypeAlias = tuple[Side, str, str]
"""Side, model and variant; inputs are the same for all variants, which is empty then."""
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Drifting:
    """References, and what the last window of each showed."""

    budget: FalseAlarmBudget
    recorder: Recorder
    given: Mapping[str, Reference] = field(default_factory=dict)
    findings: dict[Key, Findings] = field(default_factory=dict)
    _references: dict[Key, Reference] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: MonitorPlan, recorder: Recorder, store: Store) -> Self:
        """Read the calibration data, and what earlier gateways found usual; raises what `reference_of_file` raises."""
        given = {name: reference_of_file(Path(file)) for name, file in plan.references.items()}
        made = cls(FalseAlarmBudget(plan.alarms, 30.0 * DAY_S, plan.drift_every_s), recorder, given)
        for name, reference in given.items():
            store.put(_name(("input", name, "")), reference.to_object())
        return made

    def flag(self, side: Side, model: str, variant: str) -> float | None:
        """Whether the last window drifted, 1.0 or 0.0; None where there was none yet."""
        found = self.findings.get((side, model, variant))
        return None if found is None else float(bool(found.drifted))

    def drifted(self, side: Side, model: str, variant: str) -> tuple[str, ...]:
        """Return the features that drifted in the last window."""
        found = self.findings.get((side, model, variant))
        return () if found is None else found.drifted

    def look(self, store: Store) -> dict[Key, Findings]:
        """Compare every window that has enough with its reference, and begin the next; blocks for a second or so."""
        windows: dict[Key, Reservoir] = {("input", name, ""): one for name, one in self.recorder.inputs.items()}
        windows |= {("output", *names): one for names, one in self.recorder.outputs.items()}
        found = {}
        for key, window in windows.items():
            sample = list(window.kept)
            reference = self._reference(key, store)
            if reference is None:
                if len(sample) >= FIRST:
                    self._learn(key, reference_of(f"the first {len(sample)} requests", sample), store)
                    self._next(key)
                continue
            one = compared(reference, sample, self.budget)
            if one is not None:
                found[key] = one
                self._next(key)
        self.findings |= found
        return found

    def _reference(self, key: Key, store: Store) -> Reference | None:
        if key[0] == "input" and key[1] in self.given:
            return self.given[key[1]]
        if key not in self._references and (kept := store.reference(_name(key))) is not None:
            self._references[key] = kept
        return self._references.get(key)

    def _learn(self, key: Key, reference: Reference, store: Store) -> None:
        self._references[key] = reference
        store.put(_name(key), reference.to_object())
        side, model, variant = key
        _log.warning(
            "%s: no calibration data was named: %s are what is usual of its %ss", model, reference.source, side
        )
        details = {"side": side, "variant": variant, "source": reference.source, "features": list(reference.features)}
        store.happen(Happening(self.recorder.clock(), "reference made", model, details))

    def _next(self, key: Key) -> None:
        if key[0] == "input":
            self.recorder.inputs[key[1]] = Reservoir()
        else:
            self.recorder.outputs[key[1:]] = Reservoir()


def _name(key: Key) -> str:
    return "reference " + "/".join(part for part in key if part)

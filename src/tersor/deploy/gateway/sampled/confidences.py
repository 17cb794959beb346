"""How sure a net was of its classes, and how often it is right where it is as sure: accuracy without labels.

Nothing is estimated before it was calibrated: on labels that came for answers of this very variant, or on the labelled
examples of the model's reference. Until then accuracy is unknown, and said to be.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.monitor import Calibration, estimated_accuracy
from tersor.deploy.monitor.calibration import LEAST
from tersor.evaluation.statistics import Interval

__all__ = ["Confidences", "Estimate", "Held", "confidence_of", "predicted"]

Key: TypeAlias = tuple[str, str]
"""Model and variant."""
Held: TypeAlias = Sequence[tuple[Mapping[str, Any], bytes]]
MOST_LABELS, MOST_ANSWERS = 2000, 2000
SUM_WITHIN = 0.01
"""By which probabilities may miss a sum of 1: they were rounded."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The accuracy of the last answers, at most 2000.

    interval  of 95 %; None: unknown, for there are fewer `labels` than 50, or no answers
    """

    interval: Interval | None
    labels: int

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        if self.interval is None:
            return {"state": "unknown", "labels": self.labels, "needed": LEAST}
        found = self.interval
        ends = {"value": found.value, "low": found.low, "high": found.high, "answers": found.units}
        return {"state": "estimated", "labels": self.labels, **ends}


def predicted(held: Held, kind: str) -> tuple[int, float] | None:
    """Return the class that the first row of the first output names, and its probability; None where it names none.

    kind  what the net returns: "logits" or "probabilities"
    """
    if not held or not held[0][0].get("outputs"):
        return None
    one = held[0][0]["outputs"][0]
    number, width = np.dtype(one["dtype"]), one["shape"][-1] if one["shape"] else 0
    if number.kind != "f" or width < 2 or math.prod(one["shape"]) < width:
        return None
    row = np.frombuffer(held[0][1], number, width).astype(np.float64)
    if not np.isfinite(row).all():
        return None
    if kind == "logits":
        row = np.exp(row - row.max())
        row /= row.sum()
    elif row.min() < 0 or abs(row.sum() - 1) > SUM_WITHIN:
        return None
    best = int(row.argmax())
    return best, min(1.0, float(row[best]))


def confidence_of(held: Held, kind: str) -> float | None:
    """Return the probability of the class that an answer names; None where it names none."""
    found = predicted(held, kind)
    return None if found is None else found[1]


@dataclass
class _Known:
    """What is known of one variant.

    labelled  confidences with whether the answer was right
    recent    confidences of the last answers
    fresh     how many of them came since the last look
    artefact  what identifies it: labels of another say nothing of this one
    """

    artefact: str = ""

    labelled: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=MOST_LABELS))
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))
    fresh: int = 0
    calibration: Calibration | None = None
    is_stale: bool = False


@dataclass(eq=False)
class Confidences:
    """Of all nets that name classes.

    kinds  model → "logits" or "probabilities"
    """

    recorder: Recorder
    kinds: Mapping[str, str]
    _known: dict[Key, _Known] = field(default_factory=dict, init=False)

    def of(self, model: str, held: Held) -> float | None:
        """Return how sure an answer is; None where nobody asks for that of this model."""
        kind = self.kinds.get(model)
        return None if kind is None else confidence_of(held, kind)

    def answered(self, model: str, variant: str, held: Held) -> None:
        """Take an answer."""
        confidence = self.of(model, held)
        if confidence is not None:
            known = self._of((model, variant))
            known.recent.append(confidence)
            known.fresh += 1

    def labelled(self, model: str, variant: str, confidence: float, *, is_right: bool) -> None:
        """Take the label of an answer."""
        known = self._of((model, variant))
        known.labelled.append((confidence, is_right))
        known.is_stale = True

    def serve(self, model: str, variant: str, artefact: str) -> None:
        """Know which artefact a variant is now; what was learned of another is forgotten."""
        known = self._of((model, variant))
        if known.artefact not in ("", artefact):
            known = self._known[model, variant] = _Known()
        known.artefact = artefact

    def labels(self, model: str, variant: str) -> int:
        """Return how many labels a variant is calibrated on, or will be."""
        return len(self._of((model, variant)).labelled)

    def look(self) -> dict[Key, Estimate]:
        """Calibrate where labels came, count what the answers since the last look are worth, and return estimates."""
        found = {}
        for key, known in list(self._known.items()):
            if known.is_stale and len(known.labelled) >= LEAST:
                sure, right = zip(*list(known.labelled), strict=True)
                known.calibration, known.is_stale = Calibration.fit(sure, right), False
            recent = list(known.recent)
            fresh, known.fresh = min(known.fresh, len(recent)), 0
            interval = None
            if known.calibration is not None and recent:
                interval = estimated_accuracy(known.calibration, recent)
                if fresh:
                    worth = float(known.calibration.apply(recent[-fresh:]).sum())
                    self.recorder.estimated(*key, expected=worth, answers=fresh)
            found[key] = Estimate(interval, len(known.labelled))
        return found

    def to_object(self) -> list[Any]:
        """Return the labels, for JSON: another gateway goes on with them."""
        return [
            [*key, known.artefact, [[sure, int(right)] for sure, right in known.labelled]]
            for key, known in self._known.items()
        ]

    def restore(self, document: object) -> None:
        """Take up what `to_object` made; what is anything else is left out."""
        try:
            for model, variant, artefact, rows in document or ():  # type: ignore[attr-defined]  # or TypeError
                if model in self.kinds:
                    self._of((str(model), str(variant))).artefact = str(artefact)
                    for sure, right in rows:
                        if 0 <= float(sure) <= 1 and right in (0, 1):
                            self.labelled(str(model), str(variant), float(sure), is_right=bool(right))
        except (TypeError, ValueError):
            return

    def _of(self, key: Key) -> _Known:
        return self._known.get(key) or self._known.setdefault(key, _Known())

"""Activations of live requests that a net on integers cuts off, layer by layer, against the calibration data.

A sampled request is computed once more, behind the answers, by a process of its own that counts; see
`running.activations`. Usual is what the model's reference clips, or else the first requests that were looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from tersor.core.errors import EngineError, SchemeError
from tersor.deploy.gateway.comparing.backlog import Backlog
from tersor.deploy.gateway.comparing.comparison import Exchange
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.monitor import Clipping, ClippingReference, FalseAlarmBudget, alarming, clipping
from tersor.deploy.running.supervised import RequestError, Running

__all__ = ["Clips", "Looked"]

Counts: TypeAlias = Mapping[str, Sequence[int]]
"""Layer → activations clipped, and all."""
ENGINE = "onnxruntime"
LEAST, FIRST, MOST = 50, 100, 1000
"""Requests of a window; that make a reference where nobody gave one; that a window keeps."""
WORST = 10
"""Layers that are told of, one label each."""
_chance = random.SystemRandom()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Looked:
    """What a window showed: every layer, those that clip more than usual, and the worst ones."""

    layers: Mapping[str, Clipping]
    drifted: tuple[str, ...]

    @property
    def worst(self) -> Mapping[str, Clipping]:
        """The ten layers with the smallest p-values, then the most beyond what was expected."""
        rows = sorted(self.layers.items(), key=lambda row: (row[1].p_value, row[1].expected - row[1].share))
        return dict(rows[:WORST])


@dataclass(eq=False)
class Clips:
    """The counting of one model's primary.

    share      of requests that are looked at, percent
    kept       reference of an earlier gateway, as `to_object` has it
    examples   requests of the calibration data: (request, payload) each
    """

    served: Served
    metrics: Metrics
    share: float
    kept: Any = None
    examples: Sequence[tuple[dict[str, Any], bytes]] = ()
    reference: dict[str, ClippingReference] | None = field(default=None, init=False)
    _engine: Running = field(init=False)
    _backlog: Backlog = field(init=False)
    _window: deque[Counts] = field(default_factory=lambda: deque(maxlen=MOST), init=False)
    _labels: set[str] = field(default_factory=set, init=False)
    _identity: str = field(default="", init=False)

    def __post_init__(self) -> None:
        plan = self.served.plan
        options = {"path": plan.variants[plan.primary].path}
        self._engine = Running(f"{self.served.name}/{plan.primary}/activations", "activations", options)
        self._backlog = Backlog(f"activations of {self.served.name}", self.served.admission, self._count)

    @staticmethod
    def fits(served: Served) -> bool:
        """Whether a model's primary can be looked into."""
        return served.plan.variants[served.plan.primary].engine == ENGINE

    async def start(self) -> bool:
        """Begin, and learn what is usual of the calibration data; False where there is nothing to count."""
        try:
            await self._engine.start()
        except EngineError as error:
            _log.warning("%s: activations are not counted: %s", self.served.name, str(error).split("\n", 1)[0])
            return False
        text = json.dumps(self._engine.facts["layers"], sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self.reference = self._restored()
        if self.reference is None and self.examples:
            self._learn([await self._counts(*example) for example in self.examples])
        self._backlog.start()
        return True

    async def close(self) -> None:
        """End; the window is forgotten."""
        await self._backlog.close()
        await self._engine.close()

    def offer(self, request: dict[str, Any], payload: bytes) -> None:
        """Take an answered request, if it is in the sample."""
        if _chance.random() * 100 < self.share:
            self._backlog.offer(Exchange(request, payload))

    def look(self, budget: FalseAlarmBudget) -> Looked | None:
        """Compare the window with what is usual, all layers within one budget, and begin the next.

        None where it is too small to tell, or has just become what is usual.
        """
        window = list(self._window)
        if self.reference is None:
            if len(window) >= FIRST:
                self._learn(window)
                self._window.clear()
            return None
        if len(window) < LEAST:
            return None
        self._window.clear()
        found = {
            name: clipping(reference, *_columns(window, name))
            for name, reference in self.reference.items()
            if all(name in one for one in window)
        }
        return Looked(found, alarming({name: one.p_value for name, one in found.items()}, budget))

    def show(self, found: Looked) -> None:
        """Tell of the worst layers in the metrics, and of no others."""
        names = self.served.name, self.served.plan.primary
        for layer in self._labels - set(found.worst):
            self.metrics.clipped.remove(*names, layer)
        for layer, one in found.worst.items():
            self.metrics.clipped.labels(*names, layer).set(one.share)
        self._labels = set(found.worst)
        self.metrics.drifted.labels(*names, "activations").set(bool(found.drifted))

    def to_object(self) -> Any:
        """Return what is usual, for JSON; None where nobody knows."""
        if self.reference is None:
            return None
        return {"identity": self._identity, "layers": {name: asdict(one) for name, one in self.reference.items()}}

    def _restored(self) -> dict[str, ClippingReference] | None:
        """What an earlier gateway learned, if it was of the same ranges."""
        try:
            if self.kept["identity"] != self._identity:
                return None
            return {str(name): ClippingReference(**one) for name, one in self.kept["layers"].items()}
        except (TypeError, KeyError, AttributeError, SchemeError):
            return None

    def _learn(self, sample: Sequence[Counts]) -> None:
        names = sample[0] if sample else ()
        self.reference = {name: ClippingReference.of(*_columns(sample, name)) for name in names}

    async def _count(self, exchange: Exchange) -> None:
        try:
            self._window.append(await self._counts(exchange.request, exchange.payload))
        except (EngineError, RequestError) as error:
            _log.warning("%s: activations were not counted: %s", self.served.name, error)
            self._backlog.drop("engine")

    async def _counts(self, request: dict[str, Any], payload: bytes) -> Counts:
        asked = {"inputs": request["inputs"], "outputs": None}
        async with asyncio.timeout(60), aclosing(self._engine.run(asked, payload)) as parts:
            async for part, _ in parts:
                if "layers" in part:
                    found: Counts = part["layers"]
                    return found
        raise EngineError(f"{self.served.name}: nothing was counted")


def _columns(window: Iterable[Counts], name: str) -> tuple[list[int], list[int]]:
    rows = [one[name] for one in window]
    return [row[0] for row in rows], [row[1] for row in rows]

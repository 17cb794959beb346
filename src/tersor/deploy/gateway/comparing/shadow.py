"""Comparisons with full precision, behind the answers.

A comparison takes a processor from whoever is answered meanwhile: how much of the time is bounded by the backlog.
Full precision differs from itself, since sums are rounded in another order where requests are computed together: that
is the floor, and it is measured as well, on some of the requests.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tersor.deploy.gateway.admission import Admission
from tersor.deploy.gateway.comparing.backlog import Backlog
from tersor.deploy.gateway.comparing.comparison import Compared, Exchange, NoReferenceError, compared, floor
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.variants import Variant

__all__ = ["Shadow"]

PATIENCE_S = 30.0
"""Of one comparison; the candidate is at fault where it takes longer."""
FLOOR_EVERY = 16
"""Comparisons for each in which full precision is compared with itself; the first is one of them."""


@dataclass(eq=False)
class Shadow:
    """The comparisons of one variant.

    admission  of the model: how busy it is
    told       is told each comparison
    time_share part of the time that comparisons may take, 0 … 1
    """

    model: str
    reference: Variant
    candidate: Variant
    admission: Admission
    metrics: Metrics
    told: Callable[[Compared], None] = lambda _found: None
    time_share: float = 1.0
    patience_s: float = PATIENCE_S
    compared: int = field(default=0, init=False)
    agreed: float = field(default=0.0, init=False)
    failed: int = field(default=0, init=False)
    sums: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)
    _backlog: Backlog = field(init=False)
    _chance: random.Random = field(default_factory=random.SystemRandom, init=False)

    def __post_init__(self) -> None:
        self._backlog = Backlog(
            f"shadow {self.model}", self.admission, self._compare, self._dropped, time_share=self.time_share
        )

    @property
    def dropped(self) -> Counter[str]:
        """Reason → how many were not compared."""
        return self._backlog.dropped

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._backlog.waiting

    @property
    def in_flight(self) -> int:
        """How many are being compared."""
        return self._backlog.in_flight

    @property
    def lasts_s(self) -> float:
        """Seconds that the comparison under way has lasted; 0 where there is none."""
        return self._backlog.lasts_s

    def start(self) -> None:
        """Begin to work."""
        self._backlog.start()

    async def close(self) -> None:
        """End; what waits is forgotten."""
        await self._backlog.close()

    def mean(self, name: str) -> float | None:
        """Return the mean so far of distance or divergence, or of floor agreement and so on; None: there was none."""
        count, total = self.sums.get(name, (0, 0.0))
        return total / count if count else None

    def count(self, name: str) -> int:
        """Return of how many numbers `mean` is."""
        return self.sums.get(name, (0, 0.0))[0]

    def offer(self, exchange: Exchange) -> None:
        """Take what was answered, if there is room."""
        self._backlog.offer(exchange)

    def _dropped(self, reason: str) -> None:
        self.metrics.shadow_dropped.labels(self.model, self.candidate.name, reason).inc()

    async def _compare(self, exchange: Exchange) -> None:
        labels = self.model, self.candidate.name
        try:
            found = await compared(exchange, self.reference, self.candidate, self._chance, self.patience_s)
            if self.compared % FLOOR_EVERY == 0:
                noise = await floor(exchange, self.reference, self._chance, self.patience_s)
                self._sum("floor ", noise)
                self.metrics.recorder.floored(*labels, agreed=noise.agreement, apart=noise.apart)
        except NoReferenceError:
            self._backlog.drop("reference")
            return
        self.compared += 1
        self.agreed += found.agreement
        self.failed += bool(found.failed)
        self.metrics.shadow_compared.labels(*labels).inc()
        self.metrics.shadow_agreed.labels(*labels).inc(found.agreement)
        self.metrics.recorder.compared(*labels, agreed=found.agreement, apart=found.apart)
        self._sum("", found)
        self.told(found)

    def _sum(self, kind: str, found: Compared) -> None:
        for name in ("agreement", "distance", "divergence"):
            value = getattr(found, name)
            if value is not None:
                count, total = self.sums.get(kind + name, (0, 0.0))
                self.sums[kind + name] = (count + 1, total + value)

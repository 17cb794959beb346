"""One variant of a served model: its engine, what it was loaded from, and what is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tersor.core.errors import EngineError, MissingError
from tersor.deploy.config import VariantPlan
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.registry.manifest import state_of
from tersor.deploy.running.opening import Engine, engine_of
from tersor.deploy.running.supervised import Answer, Patience, State

__all__ = ["Variant"]

MOST = 200
"""Characters of a failure that are kept."""


@dataclass(eq=False)
class Variant:
    """An engine with the artefact that it runs.

    model, name  of the model, and of the variant in it
    files        as they were before the engine was started: those are what was judged
    reason       of the engine's last change of state
    failure      why it was last found wanting; empty: it never was
    starts       times that its engine was loaded
    is_current   whether its state is told of in the metrics: from `introduce` on, until another takes its place
    """

    model: str
    name: str
    plan: VariantPlan
    metrics: Metrics
    patience: Patience = field(default_factory=Patience)
    engine: Engine = field(init=False)
    files: tuple[object, ...] = field(default=(), init=False)
    reason: str = field(default="", init=False)
    failure: str = field(default="", init=False)
    starts: int = field(default=0, init=False)
    is_current: bool = field(default=False, init=False)
    is_started: bool = field(default=False, init=False)
    _has_other_files: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        options = {name: value for name, value in asdict(self.plan).items() if value is not None}
        kind = options.pop("engine")
        self.engine = engine_of(f"{self.model}/{self.name}", kind, options, self.patience, self._told)

    async def start(self) -> None:
        """Load it; EngineError where that cannot be."""
        self.files, self.is_started = self._on_disk(), True
        await self.engine.start()
        if self._has_other_files:
            await self.close()
            raise EngineError(f"{self.model}/{self.name}: its file was replaced while it was loaded")

    async def close(self) -> None:
        """End its engine."""
        await self.engine.close()

    def introduce(self) -> None:
        """Tell of it from now on: it answers."""
        self.is_current = True
        self.metrics.introduce(self.model, self.name)
        self.metrics.ready.labels(self.model, self.name).set(self.engine.state == "ready")

    def retire(self) -> None:
        """Tell nothing more of it: another takes its place, and its name."""
        self.is_current = False

    def forget(self) -> None:
        """Take its name out of what is told of now, where nobody takes its place."""
        self.retire()
        with contextlib.suppress(KeyError):
            self.metrics.ready.remove(self.model, self.name)

    @property
    def state(self) -> str:
        """Of its engine, for people: it was ready before, when it is restarting."""
        if self._has_other_files:
            return "replaced on disk"
        return "restarting" if self.engine.state in ("starting", "waiting") and self.starts else self.engine.state

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.engine.state == "ready" and not self._has_other_files

    def is_same(self, plan: VariantPlan) -> bool:
        """Whether it runs what `plan` says, from the files that lie there now."""
        return plan == self.plan and self.engine.state != "closed" and self.files == self._on_disk()

    def run(self, request: dict[str, Any], payload: bytes = b"") -> AsyncGenerator[Answer, None]:
        """Return the parts of an answer, as its engine gives them; leaving early cancels the rest."""
        return self._refused() if self._has_other_files else self.engine.run(request, payload)

    async def _refused(self) -> AsyncGenerator[Answer, None]:
        """Fail: after a crash the engine has loaded what nobody has judged."""
        raise EngineError(f"{self.model}/{self.name}: its file was replaced while it served; reload the deployment")
        yield {}, b""

    def _told(self, state: State, reason: str) -> None:
        self.reason = reason
        if state == "waiting":
            self.failure = reason.split("\n", maxsplit=1)[0].removeprefix(f"{self.model}/{self.name}: ")[:MOST]
        if state == "ready":
            self.starts += 1
            self._has_other_files = self.files != self._on_disk()
            self.metrics.starts.labels(self.model, self.name).inc()
        if self.is_current:
            self.metrics.ready.labels(self.model, self.name).set(state == "ready")

    def _on_disk(self) -> tuple[object, ...]:
        """What identifies the files of its artefact; nothing where it has none, or they are gone."""
        try:
            return state_of(Path(self.plan.path)) if self.plan.path else ()
        except (MissingError, OSError):
            return ()

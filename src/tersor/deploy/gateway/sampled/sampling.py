"""What goes on beside requests with samples of them: estimates of accuracy, activations that are cut off, kept traffic.

Nothing of it may keep a request waiting or end the gateway: what blocks runs in a thread, what fails is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.errors import EngineError
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.recording.recorder import DAY_S
from tersor.deploy.gateway.recording.samples import LABELS, MOST_BYTES
from tersor.deploy.gateway.recording.store import Happening, Store
from tersor.deploy.gateway.sampled.clips import Clips
from tersor.deploy.gateway.sampled.confidences import Confidences, Held, predicted
from tersor.deploy.gateway.sampled.kept import Keeper, kept_path
from tersor.deploy.monitor import FalseAlarmBudget
from tersor.deploy.running.supervised import RequestError

__all__ = ["Sampling"]

LOOK_S, SAVE_S = 5.0, 60.0
MOST_EXAMPLES = 1000
"""Labelled examples of a reference that a net is asked."""
ENDS = ("value", "low", "high")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Sampling:
    """The samples of one gateway; `models` returns those that serve now."""

    deployment: Deployment
    metrics: Metrics
    models: Callable[[], Mapping[str, Served]]
    look_s: float = LOOK_S
    save_s: float = SAVE_S
    confidences: Confidences = field(init=False)
    clips: dict[str, Clips] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.plan, self.recorder = self.deployment.monitor, self.metrics.recorder
        self.confidences = Confidences(self.recorder, self.plan.confidence)
        self.budget = FalseAlarmBudget(self.plan.alarms, 30.0 * DAY_S, self.plan.drift_every_s)
        self.keeper = Keeper(kept_path(self.deployment.record), self.plan.keep) if self.plan.keep else None
        self._uncounted: dict[str, Served] = {}
        self.recorder.followers.append(self._follow)

    @asynccontextmanager
    async def running(self, store: Store) -> AsyncIterator[None]:
        """Go on, with the record of the gateway; what was learned is on the disk when this ends."""
        tasks: list[asyncio.Task[None]] = []
        try:
            self.confidences.restore(await asyncio.to_thread(store.get, "confidences"))
            self._identify()
            self.recorder.restore_opinions(await asyncio.to_thread(store.get, "opinions"))
            work: list[tuple[float, Callable[[], Awaitable[None]]]] = [(self.save_s, lambda: self._save(store))]
            if self.plan.confidence or self.keeper is not None:
                work.append((self.look_s, self._look))
            if self.plan.clipping:
                work += [
                    (self.look_s, lambda: self._attend(store)),
                    (self.plan.drift_every_s, lambda: self._cut(store)),
                ]
            tasks = [asyncio.create_task(self._every(seconds, do)) for seconds, do in work]
            tasks.append(asyncio.create_task(self._learn()))
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for clips in self.clips.values():
                await clips.close()
            try:
                await self._save(store)
            except Exception:
                _log.exception("samples were not saved")

    async def _every(self, seconds: float, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await do()
            except Exception:  # the next time may go well; requests are answered meanwhile
                _log.exception("looking at samples failed")
            await asyncio.sleep(seconds)

    def _follow(self, model: str, variant: str, request: Mapping[str, Any], payload: bytes, held: Held) -> None:
        self.confidences.answered(model, variant, held)
        if self.keeper is not None:
            self.keeper.take(model, request, payload)
        clips = self.clips.get(model)
        if clips is not None and variant == clips.served.plan.primary:
            clips.offer(dict(request), payload)

    def _identify(self) -> None:
        """Have what was learned of an artefact forgotten where another is served under its name."""
        for name in self.plan.confidence:
            served = self.models().get(name)
            for variant in served.variants.values() if served is not None else ():
                self.confidences.serve(name, variant.name, f"{variant.plan.path} {variant.files}")

    async def _look(self) -> None:
        self._identify()
        for (model, variant), found in (await asyncio.to_thread(self.confidences.look)).items():
            if found.interval is not None:
                for end in ENDS:
                    self.metrics.estimated.labels(model, variant, end).set(getattr(found.interval, end))
        await self._keep()

    async def _keep(self) -> None:
        if self.keeper is not None:
            await asyncio.to_thread(self.keeper.save, self.recorder.clock())

    async def _save(self, store: Store) -> None:
        estimates = await asyncio.to_thread(self.confidences.look)
        rows = [{"model": key[0], "variant": key[1], **one.to_object()} for key, one in estimates.items()]
        documents = {
            "estimated accuracy": rows, "confidences": self.confidences.to_object(),
            "opinions": {rollout: dict(rows) for rollout, rows in self.recorder.opinions.items()},
        }  # fmt: skip
        for name, document in documents.items():
            await asyncio.to_thread(store.put, name, document)
        await self._keep()

    # Activations

    async def _attend(self, store: Store) -> None:
        """Count the activations of each model that serves now, and of no other."""
        now = {name: served for name, served in self.models().items() if Clips.fits(served)}
        for name, clips in list(self.clips.items()):
            if now.get(name) is not clips.served:
                del self.clips[name]
                await clips.close()
        for name, served in now.items():
            if name in self.clips or self._uncounted.get(name) is served:
                continue
            kept = await asyncio.to_thread(store.get, f"clipping {name}")
            examples = await asyncio.to_thread(_requests, self.plan.references.get(name))
            clips = Clips(served, self.metrics, self.plan.clipping, kept, examples)
            self.clips[name] = clips  # before it has begun: the end of the gateway ends it
            if not await clips.start():
                del self.clips[name]
                self._uncounted[name] = served

    async def _cut(self, store: Store) -> None:
        """Compare what was cut off with what is usual."""
        for name, clips in self.clips.items():
            found = await asyncio.to_thread(clips.look, self.budget)
            await asyncio.to_thread(store.put, f"clipping {name}", clips.to_object())
            if found is None:
                continue
            clips.show(found)
            before = self.recorder.clipping.get(name, ())
            self.recorder.clipping[name] = found.drifted
            if set(found.drifted) != set(before):
                details = {
                    "variant": clips.served.plan.primary, "drifted": list(found.drifted),
                    "layers": {layer: asdict(one) for layer, one in found.worst.items()},
                }  # fmt: skip
                row = Happening(self.recorder.clock(), "activations clipped", name, details)
                await asyncio.to_thread(store.happen, row)

    # Labelled examples of references

    async def _learn(self) -> None:
        """Calibrate primaries on the labelled examples of their references, where no labels came so far."""
        for name, kind in self.plan.confidence.items():
            file, served = self.plan.references.get(name), self.models().get(name)
            if file is None or served is None or self.confidences.labels(name, served.plan.primary):
                continue
            try:
                rows, labels = await asyncio.to_thread(_examples, Path(file))
                with contextlib.suppress(EngineError, RequestError):
                    await self._calibrate(served, kind, rows, labels)
            except (OSError, ValueError, KeyError) as error:
                _log.warning("%s: no labelled examples in %s (%s)", name, file, str(error)[:80])

    async def _calibrate(self, served: Served, kind: str, rows: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
        variant = served.variants[served.plan.primary]
        for (request, payload), label in zip(_each(rows), labels.tolist(), strict=False):
            async with aclosing(variant.run(request, payload)) as parts:
                held = [part async for part in parts]
            found = predicted(held, kind)
            if found is not None:
                self.confidences.labelled(served.name, variant.name, found[1], is_right=found[0] == label)


def _examples(file: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return inputs and labels of a reference; KeyError where it has no labels."""
    if file.suffix != ".npz" or file.stat().st_size > MOST_BYTES:
        raise ValueError("an .npz with an array of labels is wanted")
    with np.load(file, allow_pickle=False) as loaded:
        labels = loaded[LABELS]
        step = max(1, -(-len(labels) // MOST_EXAMPLES))
        return {name: loaded[name][::step] for name in loaded.files if name != LABELS}, labels[::step]


def _each(rows: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield a request of one row for each example."""
    for number in range(min(map(len, rows.values()), default=0)):
        arrays = {name: np.ascontiguousarray(array[number : number + 1]) for name, array in rows.items()}
        inputs = [{"name": name, "shape": list(one.shape), "dtype": one.dtype.str} for name, one in arrays.items()]
        yield {"inputs": inputs, "outputs": None}, b"".join(one.tobytes() for one in arrays.values())


def _requests(file: str | None) -> list[tuple[dict[str, Any], bytes]]:
    """Return some examples of a reference as requests; none where it holds no arrays."""
    if file is None or not file.endswith(".npz") or Path(file).stat().st_size > MOST_BYTES:
        return []
    with np.load(file, allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in loaded.files if name != LABELS}
        step = max(1, -(-max(map(len, arrays.values())) // MOST_EXAMPLES))
        return list(_each({name: one[::step] for name, one in arrays.items()}))

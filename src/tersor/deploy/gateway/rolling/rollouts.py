"""All rollouts of a gateway: each move is written down before it acts, and gone on with after whatever ended it.

Moves come from looks at the tests and from operators. What is written down is the truth: a gateway that starts loads
the candidate, and lets it answer what it answered when the last one ended. A rollout is of the contents of its
artefacts: what lies in their place at a start, a reload or the order to start, is another one where it is another file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tersor.core.errors import SchemeError, TersorError
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.comparing.primaries import Primaries
from tersor.deploy.gateway.models import Reply, Served
from tersor.deploy.gateway.operating.audit import Author, Entry, one_line
from tersor.deploy.gateway.operating.fleet import Fleet, Member
from tersor.deploy.gateway.operating.records import Labels
from tersor.deploy.gateway.rolling import progress
from tersor.deploy.gateway.rolling.cohorts import Caller
from tersor.deploy.gateway.rolling.identity import Identities
from tersor.deploy.gateway.rolling.progress import LIVE, Move, Progress
from tersor.deploy.gateway.rolling.trial import Trial
from tersor.deploy.registry.texts import timestamp
from tersor.deploy.rollout.decision import StepProgress, decide
from tersor.deploy.rollout.sequential import stored

__all__ = ["Rollouts"]

TICK_S = 0.25
KEEP_S = 5.0
"""Between two times that counts of a step are written down: what came since is counted anew after a crash."""
ITSELF = Author("rollout", "gateway")
_log = logging.getLogger(__name__)
Moved = Callable[[Progress, Any, str, str, str], Progress]


@dataclass(eq=False)
class Rollouts:
    """The rollouts of one fleet; `trials` are those whose candidate is loaded, by model."""

    fleet: Fleet
    trials: dict[str, Trial] = field(default_factory=dict, init=False)
    primaries: Primaries = field(init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _closing: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _kept: dict[str, float] = field(default_factory=dict, init=False)
    _identities: Identities = field(default_factory=Identities, init=False)
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    """Artefacts of each model with a candidate, as of the deployment that is followed."""
    _followed: Deployment | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.primaries = Primaries(self.fleet.metrics)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go on with what was begun, and with each look from now on."""
        task: asyncio.Task[None] | None = None
        try:
            async with self._turn:
                await self._follow()
            task = asyncio.create_task(self._look_on(), name="rollouts")
            yield
        finally:
            if task is not None:
                task.cancel()
            await asyncio.gather(*([] if task is None else [task]), *self._closing, return_exceptions=True)
            for name, trial in self.trials.items():
                with contextlib.suppress(TersorError):
                    await self._keep(name, self._counted(trial))
                await trial.close()
            await self.primaries.close()

    def answered(
        self, model: Served, request: dict[str, Any], payload: bytes, caller: Caller
    ) -> AbstractAsyncContextManager[Reply]:
        """Return what holds a reply of the candidate or of `model`; SchemeError for a choice that there is not."""
        trial = self.trials.get(model.name)
        is_tried = trial is not None and trial.control is model and trial.is_loaded and not model.is_rolled_back
        if caller.choice and caller.choice not in (model.plan.primary, *([trial.candidate] if trial else [])):
            raise SchemeError(f"{model.name}: no variant {caller.choice!r:.80} can be asked for now")
        if trial and is_tried:
            return trial.answered(request, payload, caller)
        return self.primaries.answered(model, request, payload, self.fleet.deployment.monitor.compare)

    def drawing(self, model: Served, reply: Reply, caller: Caller) -> str:
        """Return the id of the rollout that drew lots for who gave a reply; empty: none did.

        There were no lots where somebody chose the variant, or another answered in its place.
        """
        trial = self.trials.get(model.name)
        is_drawn = trial is not None and 0 < trial.weight < 1 and not caller.choice and not reply.reason
        return trial.now.id if trial is not None and is_drawn else ""

    def progress(self, name: str) -> Progress | None:
        """How far the rollout of a model is; None where it has no candidate."""
        plan = self.fleet.deployment.models.get(name)
        if plan is None or plan.candidate is None:
            return None
        trial = self.trials.get(name)
        found = trial.now if trial else self.fleet.records.rollout(name)
        is_its = found is not None and found.candidate == plan.candidate and found.artefacts == self._known.get(name)
        return found if is_its else None

    def is_under_way(self, name: str) -> bool:
        """Whether something can still come of the rollout of a model."""
        now = self.progress(name)
        return now is not None and now.state in LIVE

    # Orders

    async def start(self, name: str, author: Author, why: str) -> Progress:
        """Begin, or begin anew what has ended."""
        async with self._turn:
            member = self._member(name)
            self._known.pop(name, None)
            await self._identify(name, member)
            now = self.progress(name)
            if now is not None and now.state in LIVE and (now.state != "created" or name in self.trials):
                raise SchemeError(f"the rollout of {now.candidate} is {now.state} already")
            await self._drop(name)
            if now is None or now.state != "created":
                await self._begin(name, member, author, why)
            return await self._load(name, member)

    async def pause(self, name: str, author: Author, why: str) -> Progress:
        """Let no step follow; the share of requests stays, and a harmful candidate is rolled back all the same."""
        return await self._ordered(name, progress.paused, author, why)

    async def resume(self, name: str, author: Author, why: str) -> Progress:
        """Go on after a pause."""
        return await self._ordered(name, progress.resumed, author, why)

    async def promote(self, name: str, author: Author, why: str) -> Progress:
        """Let the candidate answer everything, whatever was shown."""

        def moved(now: Progress, plan: Any, at: str, who: str, why: str) -> Progress:
            return progress.advanced(now, plan, at, who, why, to_end=True)

        return await self._ordered(name, moved, author, why)

    async def abort(self, name: str, author: Author, why: str) -> Progress:
        """Roll the candidate back."""
        return await self._ordered(name, progress.ended, author, why)

    async def _ordered(self, name: str, moved: Moved, author: Author, why: str) -> Progress:
        async with self._turn:
            self._member(name)
            trial = self.trials.get(name)
            if trial is None:
                now = self.progress(name)
                raise SchemeError(f"{name}: the candidate is {now.state if now else 'not begun'}; start it first")
            return await self._move(name, trial, moved, author.who, why)

    def _member(self, name: str) -> Member:
        member = self.fleet.members.get(name)
        if member is None or member.served.plan.candidate is None:
            raise SchemeError(f"{name} is not loaded, or deploy.yaml names no candidate for it")
        return member

    # Moves

    async def _move(self, name: str, trial: Trial, moved: Moved, who: str, why: str) -> Progress:
        """Write down the next state, and only then let it act."""
        now = moved(self._counted(trial), trial.control.plan.rollout, _now(), who, one_line(why))
        await self._keep(name, now)
        trial.now, trial.last = now, None
        trial.settle()
        self._tell(name, now)
        if now.state == "rolled_back":
            await self._drop(name)
        return now

    async def _keep(self, name: str, now: Progress) -> None:
        plan = self.fleet.deployment.models.get(name)
        weight = progress.weight_of(now) if plan else 0.0
        labels = await self._labels(name, now)
        await asyncio.to_thread(self.fleet.records.keep_rollout, name, now, weight, labels)
        self._kept[name] = time.monotonic()

    async def _labels(self, name: str, now: Progress) -> Labels | None:
        """What the registry calls the artefacts; None where there is none, or it does not know them."""
        member = self.fleet.members.get(name)
        if not self.fleet.deployment.registry or member is None or member.served.plan.candidate != now.candidate:
            return None
        plan, standings = member.served.plan, member.standings
        try:
            standing = await asyncio.to_thread(self.fleet.records.candidate, name, plan)
        except TersorError:
            if now.state not in ("created", "rolled_back"):  # it may not serve: it never does, or does no more
                raise
            return None
        if standing is None or plan.primary not in standings:
            return None
        spare = standings.get(plan.fallback) if plan.fallback else None
        return Labels(standings[plan.primary].label, standing.label, spare.label if spare else "")

    @staticmethod
    def _counted(trial: Trial) -> Progress:
        return replace(trial.now, tests=stored(trial.tests))

    def _tell(self, name: str, now: Progress) -> None:
        """Say in the metrics and in the log what stands now."""
        move, metrics = now.history[-1], self.fleet.metrics
        metrics.moves.labels(name, now.candidate, now.state).inc()
        metrics.weight.labels(name, now.candidate).set(move.weight)
        _log.warning("%s: %s is %s at %g %%: %s", name, now.candidate, now.state, 100 * move.weight, move.why)

    async def _begin(self, name: str, member: Member, author: Author, why: str) -> Progress:
        plan = member.served.plan
        assert plan.candidate is not None, "who begins has one"
        artefacts = await self._identify(name, member)
        last = self.fleet.records.rollout(name)
        last = last if last is not None and last.artefacts == artefacts else None
        move = Move(_now(), "created", None, 0.0, author.who, one_line(why))
        now = progress.begun(plan.primary, plan.candidate, artefacts, last, move)
        await self._keep(name, now)
        self._tell(name, now)
        return now

    async def _load(self, name: str, member: Member) -> Progress:
        """Load the candidate of what stands written, and let it be gated; what cannot be is rolled back."""
        now = self.fleet.records.rollout(name)
        assert now is not None, "it was begun"
        trial = Trial(member.served, now, self.fleet.metrics)
        try:
            await asyncio.to_thread(self.fleet.records.candidate, name, member.served.plan)
            await trial.load()
        except TersorError as error:
            await trial.close()
            rules = member.served.plan.rollout
            now = progress.ended(now, rules, _now(), ITSELF.who, one_line(str(error).split("\n", maxsplit=1)[0]))
            await self._keep(name, now)
            self._tell(name, now)
            return now
        self.trials[name] = trial
        if not progress.stands(trial.now, member.served.plan.rollout):
            await self._move(name, trial, progress.refitted, ITSELF.who, "the deployment names other steps")
        why = {"created": "it is loaded, and may serve", "gated": "the gate let it"}
        while trial.now.state in why:
            await self._move(name, trial, progress.advanced, ITSELF.who, why[trial.now.state])
        await self._keep(name, self._counted(trial))  # a registry that was behind is in line again
        self._tell_weight(name, trial)
        return trial.now

    def _tell_weight(self, name: str, trial: Trial) -> None:
        self.fleet.metrics.weight.labels(name, trial.candidate).set(trial.weight)

    async def _drop(self, name: str) -> None:
        """Take a candidate out of service at once, and end it when its requests are answered."""
        trial = self.trials.pop(name, None)
        if trial is None:
            return
        self.fleet.metrics.weight.labels(name, trial.candidate).set(0)
        deadline = time.monotonic() + self.fleet.deployment.retire_s

        async def ended() -> None:
            try:
                while not trial.served.is_idle and time.monotonic() < deadline:
                    await asyncio.sleep(TICK_S)
            finally:
                await trial.close()

        task = asyncio.create_task(ended(), name=f"ending {name}/{trial.candidate}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # Looks

    async def _look_on(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            passed, last = time.monotonic() - last, time.monotonic()
            async with self._turn:
                try:
                    await self._follow()
                except TersorError as error:
                    _log.error("rollouts: %s", error)
                for name, trial in list(self.trials.items()):
                    trial.settle()
                    try:
                        await self._look(name, trial, passed)
                    except TersorError as error:  # nothing was changed: the next look tries again
                        _log.error("%s: the rollout stays where it is: %s", name, error)

    async def _follow(self) -> None:
        """Have a trial for each candidate that the deployment names now, and for no other."""
        if self._followed is not self.fleet.deployment:
            self._followed = self.fleet.deployment
            self._known.clear()
        for name, trial in list(self.trials.items()):
            member = self.fleet.members.get(name)
            is_same = member is not None and member.served is trial.control
            if not is_same or member is None or await self._identify(name, member) != trial.now.artefacts:
                with contextlib.suppress(TersorError):
                    await self._keep(name, self._counted(trial))
                await self._drop(name)
        for name, member in self.fleet.members.items():
            plan = member.served.plan
            if plan.candidate is None or name in self.trials:
                continue
            now = self.fleet.records.rollout(name)
            if now is None or now.artefacts != await self._identify(name, member):
                now = await self._begin(name, member, ITSELF, "deploy.yaml names it")
            elif now.state == "rolled_back":
                continue
            if now.state != "created" or plan.rollout.starts:
                await self._load(name, member)

    async def _identify(self, name: str, member: Member) -> tuple[str, ...]:
        """What the two artefacts of a model's rollout are, by their contents."""
        if name not in self._known:
            self._known[name] = await asyncio.to_thread(self._identities.of, member.served.plan)
        return self._known[name]

    async def _look(self, name: str, trial: Trial, passed: float) -> None:
        """Decide what follows from what was seen."""
        if trial.now.trying not in ("shadow", "canary") or trial.control.is_rolled_back:
            return
        rules = trial.control.plan.rollout
        trial.now = replace(trial.now, elapsed_s=trial.now.elapsed_s + passed)
        trial.look()
        now = trial.now
        step = now.step if now.trying == "canary" else None
        decision = decide(trial.tests, rules.rules(step), StepProgress(now.samples, now.elapsed_s), trial.alarms)
        trial.last = decision
        for test, standing in decision.standings.items():
            labels = name, trial.candidate, test
            self.fleet.metrics.nearness.labels(*labels, "harm").set(standing.to_harm)
            self.fleet.metrics.nearness.labels(*labels, "safe").set(standing.to_safe)
        moves: Mapping[str, Moved] = {
            "ROLL_BACK": progress.ended, "PROMOTE_STEP": progress.advanced, "PAUSE": progress.paused
        }  # fmt: skip
        moved = moves.get(decision.action)
        is_held = now.state == "paused" and decision.action != "ROLL_BACK"
        if moved is None or is_held:
            if time.monotonic() - self._kept.get(name, 0.0) >= KEEP_S:
                await self._keep(name, self._counted(trial))
            return

        def made(now: Progress, plan: Any, at: str, who: str, why: str) -> Progress:
            return moved(progress.decided(now, decision, at), plan, at, who, why)

        after = await self._move(name, trial, made, ITSELF.who, decision.reason)
        await self._audit(name, after)

    async def _audit(self, name: str, now: Progress) -> None:
        """Write into the log what the rollout did by itself."""
        move = now.history[-1]
        what = f"rollout to {move.state} at {100 * move.weight:g} %"
        with contextlib.suppress(TersorError):
            entry = Entry(ITSELF, what, name, "done", one_line(move.why))
            await asyncio.to_thread(self.fleet.records.write, entry)


def _now() -> str:
    return timestamp(datetime.now(UTC))

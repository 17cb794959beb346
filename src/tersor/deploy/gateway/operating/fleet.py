"""All models that serve, and their replacement while they do.

What is new is loaded beside what serves, and takes its place only when all of it is ready. What was replaced answers
the requests that it has, and ends. What cannot be read, is not allowed or does not load changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields

from tersor.core.errors import SchemeError
from tersor.deploy.alerting.plan import LIVE, MonitorPlan
from tersor.deploy.config import Deployment, ModelPlan
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.operating.audit import Author
from tersor.deploy.gateway.operating.records import Records, Since
from tersor.deploy.gateway.operating.standing import Standings
from tersor.deploy.running.supervised import Patience

__all__ = ["Changes", "Fleet", "Member"]

FIXED = ("host", "port", "receive_s", "drain_s", "registry", "audit", "record")
"""What a running gateway cannot change."""
POLL_S = 0.05
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A model that serves, what a registry knows of its variants, and since when it answers as it does."""

    served: Served
    standings: Standings
    since: Since


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload did, by name of model."""

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(eq=False)
class Fleet:
    """The models of one deployment.

    members   those that are loaded; never changed in place, so that it can be read at any time
    unloaded  those that somebody has unloaded: until they are loaded, all is reloaded, or the gateway starts anew
    """

    deployment: Deployment
    records: Records
    metrics: Metrics
    patience: Patience = field(default_factory=Patience)
    members: Mapping[str, Member] = field(default_factory=dict, init=False)
    unloaded: frozenset[str] = field(default=frozenset(), init=False)
    _retiring: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    """Of those that load and end models, which may take long."""
    _entry: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    """Of those that write down who answers, and make it so: a rollback does not wait for a model that is loaded."""

    @property
    def models(self) -> Mapping[str, Served]:
        """Those that answer."""
        return {name: member.served for name, member in self.members.items()}

    @asynccontextmanager
    async def running(self, author: Author) -> AsyncIterator[None]:
        """Hold all engines.

        Raises EngineError where one cannot be loaded, QualityError or MissingError where the registry does not let one
        serve.
        """
        try:
            async with self._turn:
                await self._replace(self.deployment.models, author, "serve")
            yield
        finally:
            for task in self._retiring:
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)
            for served in self.models.values():
                await served.close()

    async def reload(self, deployment: Deployment, author: Author, why: str) -> Changes:
        """Serve what `deployment` says instead; raises what `running` raises, and changes nothing then."""
        async with self._turn:
            old, watch, watched = self.deployment, deployment.monitor, self.deployment.monitor
            odd = [name for name in FIXED if getattr(deployment, name) != getattr(old, name)]
            names = (one.name for one in fields(MonitorPlan) if one.name not in LIVE)
            odd += [f"monitor.{name}" for name in names if getattr(watch, name) != getattr(watched, name)]
            if odd:
                raise SchemeError(f"{', '.join(odd)} cannot change while it serves: end it and start it anew")
            changes = await self._replace(deployment.models, author, why)
            self.deployment, self.unloaded = deployment, frozenset()
            return changes

    async def load(self, name: str, author: Author, why: str) -> Changes:
        """Load a model of the deployment, or load it anew where its files are others now."""
        async with self._turn:
            plans = {other: self.deployment.models[other] for other in self.members}
            changes = await self._replace({**plans, name: self.deployment.models[name]}, author, why, only=name)
            self.unloaded -= {name}
            return changes

    async def unload(self, name: str, author: Author, why: str) -> None:
        """Let a model answer nothing any more; requests that it has are answered."""
        async with self._turn:
            if name in self.members:
                await self._remove(name, author, why)
            self.unloaded |= {name}

    async def roll_back(self, name: str, author: Author, why: str, *, is_rolled_back: bool) -> Since:
        """Let the fallback answer everything, or the primary again; written down before it is so."""
        async with self._entry:
            member = self.members[name]
            plan, standings = member.served.plan, member.standings
            if is_rolled_back and plan.fallback is None:
                raise SchemeError(f"{name} has no fallback that could answer")
            if not is_rolled_back:
                standings = await asyncio.to_thread(self.records.standings, name, plan)
            since = await asyncio.to_thread(
                self.records.answers, name, plan, standings, is_rolled_back=is_rolled_back, author=author, why=why
            )
            member.served.is_rolled_back = is_rolled_back
            self.members = {**self.members, name: Member(member.served, standings, since)}
            return since

    # Replacing

    async def _replace(
        self, plans: Mapping[str, ModelPlan], author: Author, why: str, *, only: str | None = None
    ) -> Changes:
        """Make `plans` serve, and nothing else; of what serves already, look at `only` if given."""
        touched = {name: plan for name, plan in plans.items() if only in (None, name)}
        standings: dict[str, Standings] = {}
        for name, plan in touched.items():
            standings[name] = await asyncio.to_thread(self.records.standings, name, plan)
            await self._is_rolled_back(name, plan, standings[name])
        made = {name: self._made(name, plan) for name, plan in touched.items()}
        fresh = {name: served for name, served in made.items() if served is not self.models.get(name)}
        started: list[Served] = []
        try:
            for served in fresh.values():
                await served.start()
                started.append(served)
            for name, served in made.items():
                async with self._entry:
                    await self._enter(name, served, standings[name], author, why)
                if served in started:
                    started.remove(served)
        except BaseException:
            for served in started:
                await self._drop(served)
            raise
        removed = [name for name in self.members if name not in plans]
        for name in removed:
            await self._remove(name, author, why)
        self.members = {name: self.members[name] for name in plans}
        return Changes(tuple(fresh), tuple(name for name in made if name not in fresh), tuple(removed))

    def _made(self, name: str, plan: ModelPlan) -> Served:
        """Return the model that serves already where it is the same, else one that takes over what is."""
        old = self.models.get(name)
        if old is not None and old.is_same(plan):
            return old
        served = Served(name, plan, self.metrics, self.patience)
        if old is not None:
            served.take_over(old)
        return served

    async def _enter(self, name: str, served: Served, standings: Standings, author: Author, why: str) -> None:
        """Write down that a model answers, and let it."""
        is_rolled_back = await self._is_rolled_back(name, served.plan, standings)
        old = self.members.get(name)
        is_same = old is not None and (old.served, old.standings) == (served, standings)
        if is_same and old is not None and old.served.is_rolled_back == is_rolled_back:
            return
        since = await asyncio.to_thread(
            self.records.answers, name, served.plan, standings, is_rolled_back=is_rolled_back, author=author, why=why
        )
        served.is_rolled_back = is_rolled_back
        self.members = {**self.members, name: Member(served, standings, since)}
        if old is not None and old.served is not served:
            self._retire(old.served, served)
        for variant in served.variants.values():
            variant.introduce()

    async def _is_rolled_back(self, name: str, plan: ModelPlan, standings: Standings) -> bool:
        """Whether the fallback answers; SchemeError where there is none that could."""
        is_rolled_back = await asyncio.to_thread(self.records.is_rolled_back, name, plan, standings)
        if is_rolled_back and plan.fallback is None:
            raise SchemeError(f"models.{name}: {plan.primary} was rolled back; give it a fallback, or restore it")
        return is_rolled_back

    async def _drop(self, served: Served) -> None:
        """End the variants of a model that was never entered, but not those that it took over."""
        current = self.models.get(served.name)
        shared = set() if current is None else set(current.variants.values())
        for variant in served.variants.values():
            if variant not in shared:
                await variant.close()

    async def _remove(self, name: str, author: Author, why: str) -> None:
        """Write down that a model answers no more, and end it."""
        async with self._entry:
            await asyncio.to_thread(self.records.ended, name, author, why)
            served = self.members[name].served
            self.members = {other: member for other, member in self.members.items() if other != name}
            self._retire(served, None)

    def _retire(self, old: Served, new: Served | None) -> None:
        """End what `new` has not taken over of `old`, once nobody waits for its answers."""
        taken = set() if new is None else set(new.variants.values())
        leaving = [variant for variant in old.variants.values() if variant not in taken]
        names = set() if new is None else set(new.variants)
        for variant in leaving:
            (variant.retire if variant.name in names else variant.forget)()

        async def ended() -> None:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.deployment.retire_s):
                        while not old.is_idle:
                            await asyncio.sleep(POLL_S)
                if not old.is_idle:
                    _log.warning("%s: requests to what was replaced were cut off", old.name)
            finally:
                for variant in leaving:
                    await variant.close()

        task = asyncio.create_task(ended(), name=f"retiring {old.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

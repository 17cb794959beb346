"""What an operator can have done: one table, which a rollout extends by its steps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from tersor.core.errors import SchemeError, TersorError
from tersor.deploy.alerting.alarms import Alarms
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.admission import RateLimit
from tersor.deploy.gateway.operating.access import Access
from tersor.deploy.gateway.operating.audit import EVERYTHING, Author, Entry, Result, one_line
from tersor.deploy.gateway.operating.fleet import Fleet
from tersor.deploy.gateway.rolling.rollouts import Rollouts
from tersor.deploy.running.supervised import RequestError

__all__ = ["ACTIONS", "Action", "Operator", "Order"]

BAD_REQUEST, NOT_FOUND, CONFLICT, UNAVAILABLE = 400, 404, 409, 503
REFUSALS_A_MINUTE = 60
"""That are written down one by one; of more, only the number is: whoever may not ask shall not fill the disk."""
Told: TypeAlias = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """Something that is to be done.

    model  that it is about; None: all
    why    for the log; may be empty
    """

    action: str
    model: str | None
    why: str
    author: Author


@dataclass(frozen=True, slots=True)
class Action:
    """A row: what it does, whether it is about one model, and how it is done; what that returns is told."""

    summary: str
    takes_model: bool
    run: Callable[[Operator, Order], Awaitable[Told]]


@dataclass(eq=False)
class Operator:
    """Carries out orders, each written down before it is and after.

    read    reads the deployment again; raises what is wrong with it
    alarms  take their limits, silences and addresses from it
    """

    fleet: Fleet
    access: Access
    read: Callable[[], Deployment]
    rollouts: Rollouts
    alarms: Alarms
    _refusals: RateLimit = field(default_factory=lambda: RateLimit(REFUSALS_A_MINUTE), init=False)
    _unwritten: int = field(default=0, init=False)

    async def carry_out(self, order: Order) -> Told:
        """Do it and return what is told; RequestError with what went wrong: then nothing has changed."""
        action = self._action(order)
        try:
            await self._write(order, "begun", order.why)
        except TersorError as error:
            raise RequestError(_first_line(error), UNAVAILABLE, {"Retry-After": "1"}) from error
        try:
            told = await action.run(self, order)
        except TersorError as error:
            await self._write_after(order, "failed", _first_line(error))
            raise RequestError(f"{order.action}: {_first_line(error)}", CONFLICT) from error
        except BaseException:
            await self._write_after(order, "failed", "the gateway ended, or is at fault")
            raise
        await self._write_after(order, "done", order.why)
        return {"action": order.action, "result": "done", **told}

    async def ordered(self, order: Order) -> Told:
        """Carry out what somebody asks for; an order that makes no sense is written down as well."""
        try:
            return await self.carry_out(order)
        except RequestError as error:
            if error.status in (BAD_REQUEST, NOT_FOUND):
                await self.refused(order.author, order.action, order.model, str(error))
            raise

    async def refused(self, author: Author, what: str, subject: str | None, reason: str) -> None:
        """Write down that somebody tried what he may not."""
        if self._refusals.take():
            self._unwritten += 1
            return
        more, self._unwritten = self._unwritten, 0
        reason += f" (and {more} more were refused that are not written down)" if more else ""
        await self._write_after(Order(what, subject, "", author), "refused", reason)

    async def noted(self, author: Author, what: str) -> None:
        """Write down what changes nothing that serves: that somebody signed in, or out."""
        await self._write_after(Order(what, None, "", author), "done", "")

    def _action(self, order: Order) -> Action:
        action = ACTIONS.get(order.action)
        if action is None:
            raise RequestError(f"no action {order.action!r:.80}; there are {', '.join(ACTIONS)}", BAD_REQUEST)
        if not action.takes_model and order.model is not None:
            raise RequestError(f"{order.action} is about all models, and takes none", BAD_REQUEST)
        if action.takes_model and order.model not in self.fleet.deployment.models:
            there = ", ".join(self.fleet.deployment.models)
            raise RequestError(f"{order.action}: no model {order.model!r:.80}; there are {there}", NOT_FOUND)
        return action

    async def _write(self, order: Order, result: Result, reason: str) -> None:
        subject = order.model or EVERYTHING
        entry = Entry(order.author, one_line(order.action) or "?", one_line(subject), result, one_line(reason))
        await asyncio.to_thread(self.fleet.records.write, entry)

    async def _write_after(self, order: Order, result: Result, reason: str) -> None:
        """Write down what became of it; what was done stays so where that fails."""
        try:
            await self._write(order, result, reason)
        except TersorError as error:
            _log.warning("%s of %s is %s, but: %s", order.action, order.model or "all", result, error)


async def _rollback(operator: Operator, order: Order) -> Told:
    return await _answers(operator, order, is_rolled_back=True)


async def _restore(operator: Operator, order: Order) -> Told:
    return await _answers(operator, order, is_rolled_back=False)


async def _answers(operator: Operator, order: Order, *, is_rolled_back: bool) -> Told:
    name = _loaded(operator, order)
    since = await operator.fleet.roll_back(name, order.author, order.why, is_rolled_back=is_rolled_back)
    served = operator.fleet.members[name].served
    return {"model": name, "answering": served.answering, "since": since.at}


async def _reload(operator: Operator, order: Order) -> Told:
    deployment = await asyncio.to_thread(operator.read)
    delivery = operator.alarms.prepared(deployment.monitor)
    changes = await operator.fleet.reload(deployment, order.author, order.why or "reload")
    operator.alarms.change(deployment.monitor, delivery)
    operator.access.change(deployment.keys)
    return {name: list(models) for name, models in asdict(changes).items()}


async def _load(operator: Operator, order: Order) -> Told:
    assert order.model is not None, "the table says so"
    changes = await operator.fleet.load(order.model, order.author, order.why or "load")
    return {"model": order.model, "was_loaded": order.model in changes.kept}


async def _unload(operator: Operator, order: Order) -> Told:
    assert order.model is not None, "the table says so"
    await operator.fleet.unload(order.model, order.author, order.why or "unload")
    return {"model": order.model}


async def _reset_breaker(operator: Operator, order: Order) -> Told:
    name = _loaded(operator, order)
    breaker = operator.fleet.members[name].served.ladder.breaker
    now = time.monotonic()
    breaker.reset(now)
    return {"model": name, "breaker": breaker.state(now)}


def _rollout(name: str) -> Callable[[Operator, Order], Awaitable[Told]]:
    """What moves a rollout: a method of `Rollouts`."""

    async def moved(operator: Operator, order: Order) -> Told:
        model = _loaded(operator, order)
        now = await getattr(operator.rollouts, name)(model, order.author, order.why or name)
        return {"model": model, "candidate": now.candidate, "state": now.state, "weight": now.history[-1].weight}

    return moved


def _loaded(operator: Operator, order: Order) -> str:
    if order.model not in operator.fleet.members:
        raise SchemeError(f"{order.model} is not loaded; load it first")
    assert order.model is not None, "it is one of those that are loaded"
    return order.model


def _first_line(error: TersorError) -> str:
    return one_line(str(error).split("\n", maxsplit=1)[0])


ACTIONS: Mapping[str, Action] = {
    "rollback": Action("The fallback, full precision, answers everything.", True, _rollback),
    "restore": Action("The primary answers again, if its gate still lets it.", True, _restore),
    "reload": Action("Serve what the deployment says now, without a failed request.", False, _reload),
    "reset-breaker": Action("Close the breaker, and forget how often it opened.", True, _reset_breaker),
    "load": Action("Load a model, or load it anew where its files are others.", True, _load),
    "unload": Action("Let a model answer nothing, until it is loaded or all is reloaded.", True, _unload),
    "start": Action("Begin the rollout of the candidate, or begin it anew.", True, _rollout("start")),
    "pause": Action("Let no further step of the rollout follow.", True, _rollout("pause")),
    "resume": Action("Go on with the rollout.", True, _rollout("resume")),
    "promote": Action("Let the candidate answer everything, whatever was shown.", True, _rollout("promote")),
    "abort": Action("Roll the candidate back.", True, _rollout("abort")),
}
"""What can be ordered."""

"""The moves of a deployment as pure functions: what stands under a name next, and what its history says.

A rollback returns to the last state in which one artefact served alone, and never to the one it leaves: each
transition remembers where a rollback from it leads, so that several rollbacks in a row walk further back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.core.errors import SchemeError
from tersor.deploy.registry.rows import Action, Deployment, Interval, State

__all__ = [
    "Move",
    "deployed",
    "differs",
    "intervals",
    "rolled_back",
    "rolled_back_from",
    "rolled_back_to",
    "shifted",
    "stopped",
]

CANDIDATE_STATES: tuple[State, ...] = ("shadow", "canary", "paused")


@dataclass(frozen=True, slots=True)
class Move:
    """What a transition makes of a deployment; artefacts by label."""

    action: Action
    state: State
    artefact: str
    fallback: str | None
    candidate: str | None = None
    weight: float = 0.0
    before: int | None = None


def deployed(now: Deployment | None, artefact: str, fallback: str | None) -> Move | None:
    """Return the move that lets `artefact` serve alone; None where it does already."""
    if now is not None and (now.state, now.artefact, now.fallback) == ("serving", artefact, fallback):
        return None
    return Move("deploy", "serving", artefact, fallback, before=_return_of(now))


def shifted(now: Deployment | None, name: str, state: State, candidate: str, weight: float) -> Move | None:
    """Return the move that puts `candidate` beside the primary; None where it stands so already.

    weight  share of requests that it answers, 0 … 1; 0 in the state shadow, where its answers are thrown away
    """
    if now is None or now.state == "stopped":
        raise SchemeError(f"{name}: nothing serves, so nothing can be tried beside it; deploy first")
    if state not in CANDIDATE_STATES:
        raise SchemeError(f"{name}: {state!r:.30} is no state for a candidate; {', '.join(CANDIDATE_STATES)} are")
    if not 0 <= weight <= 1 or (state == "shadow" and weight):
        raise SchemeError(f"{name}: weight {weight:g}: a share of requests is 0 … 1, and 0 for a shadow")
    if candidate == now.artefact:
        raise SchemeError(f"{name}: {candidate} is the primary, it cannot be its own candidate")
    if (now.state, now.candidate, now.weight) == (state, candidate, weight):
        return None
    return Move("shift", state, now.artefact, now.fallback, candidate, weight, _return_of(now))


def rolled_back(now: Deployment | None, target: Deployment | None, name: str, leaving: str | None) -> Move:
    """Return the move back to `target`, the deployment that `now.before` names.

    leaving  the label that must be what serves or is tried now, so that a move that was repeated does not go two back
    """
    if now is None:
        raise SchemeError(f"{name}: nothing was ever deployed under this name")
    if leaving is not None and leaving not in (now.artefact, now.candidate):
        raise SchemeError(f"{name}: {leaving} is not what serves, {now.artefact} is: nothing was rolled back")
    if target is None:
        raise SchemeError(f"{name}: nothing served before {now.artefact}; deploy something else")
    return Move("rollback", "serving", target.artefact, target.fallback, before=target.before)


def rolled_back_to(now: Deployment | None, name: str, artefact: str) -> Move | None:
    """Return the move after which `artefact`, which stands by, answers alone; None where it does already.

    A rollback from there leads to what served before the artefact that is left.
    """
    if now is None:
        raise SchemeError(f"{name}: nothing was ever deployed under this name")
    if (now.action, now.state, now.artefact) == ("rollback", "serving", artefact):
        return None
    return Move("rollback", "serving", artefact, None, before=now.before)


def rolled_back_from(history: Sequence[Interval]) -> str | None:
    """Return the artefact that the last rollback left; None where the last move was none.

    history  of one name, the oldest first
    """
    last = history[-1].deployment if history else None
    if last is None or last.action != "rollback":
        return None
    others = (row.deployment.artefact for row in reversed(history) if row.deployment.artefact != last.artefact)
    return next(others, None)


def differs(target: Deployment, now: Deployment) -> bool:
    """Whether a rollback from `now` to `target` changes what serves."""
    return now.state != "serving" or (target.artefact, target.fallback) != (now.artefact, now.fallback)


def stopped(now: Deployment | None, name: str) -> Move | None:
    """Return the move after which nothing serves; None where nothing does."""
    if now is None:
        raise SchemeError(f"{name}: nothing was ever deployed under this name")
    if now.state == "stopped":
        return None
    return Move("undeploy", "stopped", now.artefact, now.fallback, before=_return_of(now))


def intervals(history: Sequence[Deployment]) -> tuple[Interval, ...]:
    """Return what served from when to when, given every transition of one name in order of id.

    Where nothing served there is a gap. The order is that of the commits, also where the clock was set back.
    """
    ends = [*(later.since for later in history[1:]), None]
    return tuple(Interval(here, until) for here, until in zip(history, ends, strict=False) if here.state != "stopped")


def _return_of(now: Deployment | None) -> int | None:
    """Return the transition that a rollback from whatever follows `now` leads to."""
    if now is None:
        return None
    return now.id if now.state == "serving" else now.before

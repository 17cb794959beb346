"""What an operator sees of a rollout, in GET /v1/rollout under `models[].rollout`; null where there is no candidate.

candidate, control, reference   variants: the new one, the one that it is to replace, and the one that answers of
                                both are compared with (the fallback, else the control)
id, attempt    of this rollout; `start` begins the next attempt
state          created, gated, shadow, canary, promoted, rolled_back or paused
paused_in      shadow or canary where it is paused, else null
step, steps    number of the canary's step from 0 on, null outside; shares of all steps, 0 … 1
weight         share of requests that the candidate answers now, 0 … 1
since          {at, who, why} of the state
progress       of the step: {samples, needed_samples, elapsed_s, needed_s, most_s}; null where nothing is awaited
tests          [{name, verdict, to_harm, to_safe, samples, required, numbers}]: verdict is harmful, safe or
               undecided; to_harm and to_safe say how near a boundary is, 0 … 1; numbers by name, null: none yet
next           {action, reason} of the last look: WAIT, and what for; null before the first
traffic        {candidate, control}: {requests, errors}, of this attempt since the gateway began
shadow         {share, compared, agreement, failed, dropped, waiting, in_flight, distance, divergence, floor}: dropped
               by reason (full, time, busy, reference, error); distance of tensors relative to the reference,
               divergence of tokens in nats; null: none yet. Of agreement, distance and divergence the floor is taken
               off, which is {compared, agreement, distance, divergence} of the reference with itself
feedback       {candidate, control, difference, effect, loss, needed, is_enough} of labels of answers that lots were
               drawn for: {right, labelled} of each, intervals {value, low, high} of the difference of the shares and of
               Cohen's h, and the candidate's labels that find a `loss`: see rollout.fixed.opinions
history        [{at, state, step, weight, who, why}], the oldest first
decisions      [{at, action, reason, state, step, weight, standings, alarms, rules, progress}], the oldest first:
               all but the waits
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tersor.core.records import plain
from tersor.deploy.config import ModelPlan
from tersor.deploy.gateway.comparing.shadow import Shadow
from tersor.deploy.gateway.recording.cells import less_noise
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.rolling.progress import Progress, weight_of
from tersor.deploy.gateway.rolling.rollouts import Rollouts
from tersor.deploy.gateway.rolling.trial import Trial
from tersor.deploy.rollout.decision import StepRules
from tersor.deploy.rollout.fixed import opinions
from tersor.deploy.rollout.sequential import AnyTest, restored

__all__ = ["rollout_of"]

FLOOR = ("agreement", "distance", "divergence")
DECISION = ("action", "reason", "standings", "alarms", "rules", "progress")


def rollout_of(rollouts: Rollouts, name: str, plan: ModelPlan) -> dict[str, Any] | None:
    """Return what is told of the rollout of a model; None where it has no candidate, or none was begun."""
    now = rollouts.progress(name)
    if now is None:
        return None
    trial = rollouts.trials.get(name)
    rules = plan.rollout.rules(now.step) if now.trying in ("shadow", "canary") else None
    tests = trial.tests if trial else restored(now.tests) if now.tests else plan.rollout.begin()
    last = trial.last if trial else None
    moved = now.history[-1]
    told = {
        "candidate": now.candidate, "control": now.primary, "reference": plan.fallback or plan.primary,
        "id": now.id, "attempt": now.attempt, "state": now.state, "paused_in": now.paused_in, "step": now.step,
        "steps": [share / 100 for share in plan.rollout.steps],
        "weight": trial.weight if trial else 0.0 if now.state == "rolled_back" else weight_of(now),
        "since": {"at": moved.at, "who": moved.who, "why": moved.why},
        "progress": None if rules is None else _progress(now, rules),
        "tests": _tests(tests, rules),
        "next": None if last is None else {"action": last.action, "reason": last.reason},
        "traffic": {"candidate": _traffic(trial, now.candidate), "control": _traffic(trial, now.primary)},
        "shadow": _shadow(trial, plan),
        "feedback": _feedback(rollouts.fleet.metrics.recorder, now),
        "history": plain(now.history),
        "decisions": [_decision(row) for row in now.decisions],
    }  # fmt: skip
    found: dict[str, Any] = _sayable(told)
    return found


def _progress(now: Progress, rules: StepRules) -> dict[str, Any]:
    needs = {"needed_samples": rules.least_samples, "needed_s": rules.least_s, "most_s": rules.most_s}
    return {"samples": now.samples, "elapsed_s": round(now.elapsed_s, 3), **needs}


def _tests(tests: Mapping[str, AnyTest], rules: StepRules | None) -> list[dict[str, Any]]:
    required = (rules.required or tuple(tests)) if rules is not None else ()
    rows = []
    for name, test in tests.items():
        standing = test.standing
        rows.append({"name": name, **plain(standing), "numbers": dict(standing.numbers), "required": name in required})
    return rows


def _traffic(trial: Trial | None, variant: str) -> dict[str, int]:
    tally = trial.tallies.get(variant) if trial else None
    return {"requests": tally.all_requests if tally else 0, "errors": tally.all_errors if tally else 0}


def _shadow(trial: Trial | None, plan: ModelPlan) -> dict[str, Any]:
    shadow = trial.shadow if trial else None
    return {
        "share": plan.rollout.shadow / 100,
        "compared": shadow.compared if shadow else 0,
        "agreement": _agreement(shadow) if shadow else None,
        "failed": shadow.failed if shadow else 0,
        "dropped": dict(shadow.dropped) if shadow else {},
        "waiting": shadow.waiting if shadow else 0,
        "in_flight": shadow.in_flight if shadow else 0,
        "distance": _excess(shadow, "distance") if shadow else None,
        "divergence": _excess(shadow, "divergence") if shadow else None,
        "floor": {
            "compared": shadow.count("floor agreement") if shadow else 0,
            **{name: shadow.mean(f"floor {name}") if shadow else None for name in FLOOR},
        },
    }


def _agreement(shadow: Shadow) -> float | None:
    floors = shadow.count("floor agreement")
    return less_noise(shadow.mean("agreement"), (shadow.mean("floor agreement") or 0.0) * floors, floors)


def _excess(shadow: Shadow, name: str) -> float | None:
    found = shadow.mean(name)
    return None if found is None else max(0.0, found - (shadow.mean(f"floor {name}") or 0.0))


def _feedback(recorder: Recorder, now: Progress) -> dict[str, Any]:
    found = opinions(recorder.opinion(now.id, now.candidate), recorder.opinion(now.id, now.primary))
    return {
        **{
            name: {"right": one.hits, "labelled": one.total}
            for name, one in (("candidate", found.candidate), ("control", found.control))
        },
        **{
            name: None if one is None else {"value": one.value, "low": one.low, "high": one.high}
            for name, one in (("difference", found.difference), ("effect", found.effect))
        },
        "loss": found.loss,
        "needed": found.needed,
        "is_enough": found.is_enough,
    }


def _decision(row: Mapping[str, Any]) -> dict[str, Any]:
    """A decision without the state of the tests, which is long."""
    return {**{key: row[key] for key in ("at", "state", "step", "weight")},
            **{key: row["decision"][key] for key in DECISION}}  # fmt: skip


def _sayable(value: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(value, Mapping):
        return {key: _sayable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

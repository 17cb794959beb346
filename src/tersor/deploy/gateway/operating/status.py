"""What an operator sees of the models: who answers, how the engines are, and what stands between them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tersor.core.records import plain
from tersor.deploy.config import ModelPlan
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served
from tersor.deploy.gateway.operating.actions import ACTIONS
from tersor.deploy.gateway.operating.fleet import Fleet, Member
from tersor.deploy.gateway.operating.standing import Standing
from tersor.deploy.gateway.rolling.rollouts import Rollouts
from tersor.deploy.gateway.rolling.telling import rollout_of
from tersor.deploy.gateway.variants import Variant

__all__ = ["status_of"]

COUNTED = {
    "tersor_requests_total": ("requests", "variant"),
    "tersor_fallbacks_total": ("fallbacks", "reason"),
    "tersor_findings_total": ("findings", "sentinel"),
}
"""Metric → what it is called here, and by what it is split."""


def status_of(fleet: Fleet, rollouts: Rollouts) -> dict[str, Any]:
    """Return every model of a deployment, with all that an operator has to know of it."""
    counts = _counts(fleet.metrics)
    models = []
    for name, plan in fleet.deployment.models.items():
        member = fleet.members.get(name)
        counted = counts.get(name, {kind: {} for kind, _ in COUNTED.values()})
        told = _unloaded(name, plan, counted) if member is None else _loaded(name, member, counted)
        candidate = rollouts.trials.get(name)
        if candidate is not None:
            told["variants"].append(_variant(candidate.served.variants[candidate.candidate], "candidate", None))
        models.append({**told, "rollout": rollout_of(rollouts, name, plan)})
    actions = {name: {"summary": one.summary, "takes_model": one.takes_model} for name, one in ACTIONS.items()}
    return {"registry": bool(fleet.deployment.registry), "models": models, "actions": actions}


def _unloaded(name: str, plan: ModelPlan, counts: Mapping[str, Any]) -> dict[str, Any]:
    roles = {"primary": plan.primary, "fallback": plan.fallback, "answering": None}
    return {"name": name, "state": "unloaded", **roles, "since": None, "variants": [], "guard": None, "counts": counts,
            "rollout": None}  # fmt: skip


def _loaded(name: str, member: Member, counts: Mapping[str, Any]) -> dict[str, Any]:
    served, plan = member.served, member.served.plan
    return {
        "name": name,
        "state": "rolled back" if served.is_rolled_back else "serving",
        "primary": plan.primary,
        "fallback": plan.fallback,
        "answering": served.answering,
        "since": plain(member.since),
        "variants": [
            _variant(variant, "primary" if variant.name == plan.primary else "fallback", member)
            for variant in served.variants.values()
        ],
        "guard": _guard(served),
        "counts": counts,
    }


def _variant(variant: Variant, role: str, member: Member | None) -> dict[str, Any]:
    return {
        "name": variant.name,
        "role": role,
        "engine": variant.plan.engine,
        "state": variant.state,
        "reason": variant.reason,
        "starts": variant.starts,
        "registered": None if member is None else _registered(member.standings.get(variant.name)),
    }


def _guard(served: Served) -> dict[str, Any]:
    """What stands before and between the variants."""
    ladder, now = served.ladder, time.monotonic()
    breaker, budget = ladder.breaker, ladder.budget
    last = breaker.transitions[-1] if breaker.transitions else None
    return {
        "breaker": {
            "state": breaker.state(now),
            "verdict": breaker.verdict,
            "openings": breaker.openings,
            "reason": last.reason if last else "",
        },
        "rates": plain(ladder.rates(now)),
        "budget": {name: {"left": budget.left(name), **plain(rules)} for name, rules in budget.rules.items()},
        "in_flight": served.admission.active,
        "waiting": served.admission.waiting,
        "limits": plain(served.plan.limits),
    }


def _registered(standing: Standing | None) -> dict[str, Any] | None:
    """What the registry says, without the numbers of the gate."""
    if standing is None:
        return None
    verdict, override = standing.verdict, standing.override
    return {
        "artefact": standing.label,
        "sha256": standing.sha256,
        "gate": None if verdict is None else {"outcome": verdict.outcome, "at": verdict.at, "who": verdict.who},
        "override": None if override is None else {"who": override.who, "why": override.why, "at": override.at},
    }


def _counts(metrics: Metrics) -> dict[str, dict[str, dict[str, int]]]:
    """Return model → kind → name → count, since the gateway began."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name in COUNTED:
                kind, split = COUNTED[sample.name]
                model = found.setdefault(sample.labels["model"], {one: {} for one, _ in COUNTED.values()})
                name = sample.labels[split]
                model[kind][name] = model[kind].get(name, 0) + int(sample.value)
    return found

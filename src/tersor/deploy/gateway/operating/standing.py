"""Whether a registry lets the variants of a deployment serve."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tersor.core.errors import MissingError, QualityError, SchemeError, TersorError
from tersor.deploy.config import ModelPlan
from tersor.deploy.registry.manifest import Contents, contents_of, state_of
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import GateVerdict, Override

__all__ = ["Inspector", "Standing", "Standings"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a registry knows of a variant.

    label     of the artefact whose contents it has
    sha256    of the artefact's manifest
    verdict   what its gate found last; None: there was none
    override  somebody's word that it may serve all the same; None where none holds
    """

    label: str
    sha256: str
    verdict: GateVerdict | None = None
    override: Override | None = None


Standings: TypeAlias = Mapping[str, Standing]
"""Variant → what is known of it."""


class Inspector:
    """Compares variants with a registry; what was hashed once is not read again while its files stay as they are."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self._registry, self._folder = registry, folder
        self._hashed: dict[tuple[object, ...], Contents] = {}

    def standings(self, name: str, plan: ModelPlan) -> Standings:
        """Return the standing of every variant of a model that answers.

        The primary has to be registered, with a pass of its gate or somebody who answers for it; the fallback has to be
        registered as one of full precision, unless it is no file of ours. Raises MissingError or QualityError naming
        the variant and the remedy.
        """
        found = {}
        for variant in (plan.primary, *([plan.fallback] if plan.fallback is not None else [])):
            path, place = plan.variants[variant].path, f"models.{name}.variants.{variant}"
            if not path and variant == plan.fallback:
                continue  # on another server
            if not path:
                raise QualityError(f"{place}: no artefact that a registry could know; serve it without `registry:`")
            found[variant] = self._standing(Path(path), place, is_primary=variant == plan.primary, plan=plan)
        return found

    def candidate(self, name: str, plan: ModelPlan) -> Standing | None:
        """Return the standing of a model's candidate, which needs what its primary does; raises as `standings`."""
        assert plan.candidate is not None, "who asks has one"
        path, place = plan.variants[plan.candidate].path, f"models.{name}.variants.{plan.candidate}"
        if not path:
            raise QualityError(f"{place}: no artefact that a registry could know; serve it without `registry:`")
        return self._standing(Path(path), place, is_primary=True, plan=plan)

    def label(self, plan: ModelPlan, variant: str | None) -> str | None:
        """Return what the registry calls the artefact of a variant, may it serve or not; None where it knows none."""
        path = plan.variants[variant].path if variant is not None else ""
        try:
            row = self._registry.registered(self._contents(Path(path))) if path else None
        except (TersorError, OSError):  # it is gone, or changes just now
            return None
        return None if row is None else row.label

    def _standing(self, path: Path, place: str, *, is_primary: bool, plan: ModelPlan) -> Standing:
        registry, folder = self._registry, self._folder
        row = registry.registered(self._contents(path))
        is_quantized = is_primary and plan.fallback is not None
        baseline = " --baseline FULL" if is_quantized else ""
        at = f"--registry {shlex.quote(str(folder))}"
        add = f"`tersor registry add {shlex.quote(str(path))} --name NAME{baseline} {at}`"
        is_gguf = path.suffix.lower() == ".gguf"
        judge = f"`tersor gate {shlex.quote(str(path))} {at}`" if is_gguf else "a gate of your own, which records it"
        if row is None:
            then = f", then {judge}" if is_quantized else ""
            raise MissingError(f"{place}: {path.name} is not registered; {add}{then}")
        label = row.label
        verdicts, overrides = registry.verdicts(label), registry.overrides(label)
        verdict = verdicts[-1] if verdicts else None
        covered = verdict.id if verdict else None
        override = next((one for one in reversed(overrides) if one.verdict == covered), None)
        if not is_primary and row.baseline is not None:
            raise SchemeError(
                f"{place}: {label} is compared with {row.baseline}, so it is no fallback of full precision"
            )
        has_passed = (verdict is not None and verdict.outcome == "pass") or override is not None
        reason = registry.objection(label)
        if reason is None and is_quantized and row.baseline is None and not has_passed:
            raise QualityError(
                f"{place}: {label} was registered without a baseline to be judged by; {add}, then {judge}"
            )
        if reason is not None:
            answer = f"`tersor registry override {label} --why … {at}`"
            raise QualityError(f"{place}: {label} may not serve: {reason}; judge it with {judge}, or {answer}")
        return Standing(label, row.sha256, verdict, override)

    def _contents(self, path: Path) -> Contents:
        key = (str(path), *state_of(path))
        if key not in self._hashed:
            self._hashed[key] = contents_of(path)
        return self._hashed[key]

"""What a container can hold of a model, and how large that is: a GGUF, or a checkpoint of integer groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tersor.analyse.allocation import Mix, Option
from tersor.containers.gguf import lay_out
from tersor.containers.hf.table import container
from tersor.containers.mixtures import Choice, fit, is_quantizable, parse_overrides
from tersor.core.errors import SchemeError
from tersor.core.plan import Plan
from tersor.formats import get
from tersor.models.model import Model
from tersor.pipeline.calibrated.checkpoint import CHOSEN, FUSED, plan_checkpoint
from tersor.pipeline.planning.plan_file import GGUF, PlanFile
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.planning import Choices, make_plan

__all__ = ["candidate_formats", "file_bytes", "fixed_options", "full_plan", "fused_groups", "kept_bytes", "spread"]


def candidate_formats(model: Model, formats: Sequence[str], where: str = GGUF) -> dict[str, tuple[str, ...]]:
    """Return the formats that each matrix of `model` can take in container `where`.

    In a GGUF a matrix whose rows fit none takes what stands in for these; in a checkpoint it stays as it is, as do
    embeddings and output. SchemeError where the container holds one format only, or none of these.
    """
    if where != GGUF:
        return _in_checkpoint(model, formats, where)
    found = {}
    for tensor in model.tensors:
        if is_quantizable(tensor):
            held = [name for name in formats if get(name).holds(tensor.columns)]
            stand_ins = [fit(Choice(name, ""), tensor.columns).format for name in formats]
            found[tensor.name] = tuple(dict.fromkeys(held or stand_ins))
    return found


def _in_checkpoint(model: Model, formats: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    if not container(where).mixes:
        raise SchemeError(
            f"all matrices of {where} take one format: there is nothing to plan; compressed-tensors mixes"
        )
    found: dict[str, list[str]] = {}
    for name in formats:
        container(where).settings({"": get(name)}, (), False)  # refuses what it cannot hold
        for row in plan_checkpoint(model, name, where, Choices()).tensors:
            if row.reason == CHOSEN:
                found.setdefault(row.name, []).append(row.format)
    return {name: tuple(dict.fromkeys(held)) for name, held in found.items()}


def kept_bytes(model: Model, formats: Mapping[str, Sequence[str]], where: str = GGUF) -> int:
    """Return the bytes of tensors that have no choice: float32 in a GGUF, as they are in a checkpoint."""
    if where == GGUF:
        left = [tensor for tensor in model.tensors if tensor.name not in formats]
        return sum(tensor.rows * get("f32").row_bytes(tensor.columns) for tensor in left)
    name = next(iter(formats.values()))[0]
    rows = plan_checkpoint(model, name, where, Choices()).tensors
    return sum(row.nbytes for row in rows if row.name not in formats)


def fused_groups(names: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Return the groups of tensors that have to take one format, by the name of their first."""
    if where == GGUF:
        return {name: (name,) for name in names}
    first: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, kind = name.removesuffix(".weight").rpartition(".")[::2]
        fused = next((row for row in FUSED if kind in row), (kind,))
        leader = first.setdefault(f"{stem}.{fused[0]}", name)
        groups[leader] = (*groups.get(leader, ()), name)
    return groups


def spread(mix: Mix, groups: Mapping[str, Sequence[str]]) -> Mix:
    """Return a mix of groups as one of tensors."""
    return Mix({name: mix.formats[leader] for leader, names in groups.items() for name in names}, mix.nbytes, mix.loss)


def fixed_options(
    options: Mapping[str, Sequence[Option]],
    groups: Mapping[str, Sequence[str]],
    fixed: Sequence[str],
    read: Callable[[str], str],
) -> dict[str, list[Option]]:
    """Return the options of each group without what "PATTERN=FORMAT" texts rule out.

    read  returns the name of a format as options have it
    Raises SchemeError for a pattern that matches nothing, and a format that is no candidate.
    """
    left = {name: list(held) for name, held in options.items()}
    for override in parse_overrides(fixed, read):
        found = [key for key, names in groups.items() if any(map(override.pattern.search, names))]
        if not found:
            raise SchemeError(f"the pattern {override.pattern.pattern!r} matches no tensor that has a choice")
        for name in found:
            kept = [option for option in left[name] if option.name == override.format]
            if not kept:
                known = ", ".join(option.name for option in left[name])
                raise SchemeError(f"{name} as {override.format} was not analysed; its candidates are {known}")
            left[name] = kept
    return left


def full_plan(model: Model, file: PlanFile, method: str, calibration: str) -> Plan:
    """Return what `tersor quantize --plan` would make of `model`, tensor by tensor."""
    choices = Choices(tensor_formats=file.tensor_formats(model), method=method, calibration=calibration)
    if file.where != GGUF:
        return plan_checkpoint(model, file.file_type, file.where, choices)
    return make_plan(model, file.file_type, **choices)


def file_bytes(model: Model, plan: Plan, where: str) -> int:
    """Return the size of the whole GGUF; of a checkpoint, of its tensors."""
    if where != GGUF:
        return plan.nbytes
    parts = lay_out(Path("plan.gguf"), provenance.artefact_metadata(model, plan.recipe), plan.tensors)
    return sum(part.nbytes for part in parts)

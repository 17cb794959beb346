"""Does every tensor hold what the source holds, up to the rounding of its format?

The relative error, rms(artefact - source) / rms(source), is small for a rounded tensor and about 1.4 for a misplaced
or permuted one. What is beyond the bound is tried against the usual mistakes of converters, and the one that fits is
named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tersor.core.arrays import Float32
from tersor.evaluation.checks.scaled import error_beyond_scales, paired_rows
from tersor.evaluation.checks.verdict import Check
from tersor.models import Model, ModelTensor

__all__ = ["BOUNDS", "Pair", "TensorProgress", "check_tensors", "head_counts", "method_of", "mistake", "relative_error"]

BOUNDS: Mapping[str, float] = {
    "F32": 1e-6, "F64": 1e-6, "F16": 1e-3, "BF16": 4e-3,
    "Q8_0": 0.02, "Q8_K": 0.02, "Q6_K": 0.05, "Q5_0": 0.1, "Q5_1": 0.1, "Q5_K": 0.1,
    "Q4_0": 0.2, "Q4_1": 0.2, "Q4_K": 0.2, "IQ4_NL": 0.2, "IQ4_XS": 0.2, "MXFP4": 0.3, "NVFP4": 0.3,
    "Q3_K": 0.35, "IQ3_S": 0.4, "IQ3_XXS": 0.45, "Q2_K": 0.5, "IQ2_S": 0.6, "IQ2_XS": 0.6, "IQ2_XXS": 0.7,
}  # fmt: skip
"""Largest relative error that rounding can be blamed for. About twice what normally distributed weights give
(Q8_0 .006, Q6_K .015, Q5_K .035, Q4_K .07, Q3_K .14, Q2_K .27), which leaves room for outliers; far below the 1.4 of
a tensor in the wrong place."""
COARSEST = 1.1
"""The bound of formats with one or two bits."""
CORRECTION = 0.2
"""How far methods that make good the errors of earlier layers may move weights, beyond rounding."""

DIAGNOSED_WEIGHTS = 1 << 26
COMPARED_ROWS = 64
SHOWN = 4

TensorProgress = Callable[[str, int, int], None]
"""Called with the name of a tensor, and how many of all weights have been compared."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the artefact and the one that it should hold, of the same shape."""

    found: ModelTensor
    wanted: ModelTensor

    @property
    def bound(self) -> float:
        """Largest relative error that the format of the artefact can be blamed for."""
        return BOUNDS.get(self.found.source_dtype, COARSEST)


def check_tensors(artefact: Model, source: Model, progress: TensorProgress | None = None) -> Check:
    """Compare every tensor of `artefact`, decoded, with what `source` gives; a few rows are in memory at a time.

    numbers: relative_error over all weights (root of the mean square, weighted by tensor size), rounding_error over
    those tensors that are within their bound as they are, and the worst of one tensor. Where the file says that AWQ
    made it, tensors may differ by scales of their rows and columns, and tensors_scaled says how many do.
    """
    found = {tensor.name: tensor for tensor in artefact.tensors}
    wanted = {tensor.name: tensor for tensor in source.tensors}
    problems = list(_unpaired(found, wanted))
    unpaired = len(problems)
    pairs = [Pair(found[name], wanted[name]) for name in wanted if name in found]
    pairs = [pair for pair in pairs if pair.found.shape == pair.wanted.shape]
    errors = dict(_errors(pairs, progress))
    methods = set(method_of(artefact).split("+"))
    more = CORRECTION if {"gptaq", "qronos", "best"} & methods else 0.0
    beyond = [pair for pair in pairs if not errors[pair.found.name] <= pair.bound + more]
    scaled: list[Pair] = []
    if "awq" in methods:  # it scaled matrices and norms against one another
        scaled = [pair for pair in beyond if error_beyond_scales(pair.found, pair.wanted) <= pair.bound + more]
        beyond = [pair for pair in beyond if pair not in scaled]
    problems += _faults(sorted(beyond, key=lambda pair: -_rank(errors[pair.found.name])), errors, artefact, wanted)
    near = [pair for pair in pairs if pair not in beyond and pair not in scaled]
    mean, rounding = _mean(pairs, errors), _mean(near, errors)
    numbers = {
        "relative_error": mean,
        "rounding_error": rounding,
        "worst_relative_error": max(errors.values(), default=0.0, key=_rank),
    }
    numbers |= {
        "tensors": float(len(pairs)),
        "tensors_beyond": float(len(beyond)),
        "tensors_scaled": float(len(scaled)),
    }
    if problems:
        count = unpaired + len(beyond)
        detail = f"{count} tensor{'s are' if count > 1 else ' is'} not the source's"
        return Check("tensors", "failed", detail, tuple(problems), numbers)
    detail = f"all {len(pairs)} tensors are the source's, up to rounding: relative error {rounding:.3%}"
    if scaled:
        detail = f"{detail}; {len(scaled)} of them up to the scales that awq moved between rows and columns"
    return Check("tensors", "passed", detail, numbers=numbers)


def method_of(artefact: Model) -> str:
    """The method that the file says it was made by, "" where it says nothing."""
    entry = artefact.metadata.get("tersor.recipe")
    try:
        recipe = json.loads(entry.value) if entry is not None and isinstance(entry.value, str) else {}
    except ValueError:
        return ""
    method = recipe.get("method", "") if isinstance(recipe, dict) else ""
    return method if isinstance(method, str) else ""


def relative_error(found: Float32, wanted: Float32) -> float:
    """rms(found - wanted) / rms(wanted); infinite for something in place of zeros.

    >>> relative_error(np.array([3.0, 0.0], np.float32), np.array([2.0, 0.0], np.float32))
    0.5
    """
    return _ratio(_squares(found - wanted), _squares(wanted))


def _squares(values: Float32) -> float:
    return float(np.einsum("...i,...i->...", values, values).sum(dtype=np.float64))


def _ratio(error: float, power: float) -> float:
    if power == 0:
        return 0.0 if error == 0 else math.inf
    return math.sqrt(error / power)


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _unpaired(found: Mapping[str, ModelTensor], wanted: Mapping[str, ModelTensor]) -> Iterator[str]:
    for name, tensor in wanted.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name].shape != tensor.shape:
            yield f"{name} has shape {found[name].shape}, the source gives {tensor.shape}"
    for name in found:
        if name not in wanted:
            yield f"{name} is in the artefact, but the source has nothing for it"


def _errors(pairs: list[Pair], progress: TensorProgress | None) -> Iterator[tuple[str, float]]:
    total = sum(math.prod(pair.found.shape) for pair in pairs)
    done = 0
    for pair in pairs:
        error = power = 0.0
        for found, wanted in paired_rows(pair.found, pair.wanted, 0, pair.found.rows):
            error += _squares(found - wanted)
            power += _squares(wanted)
            done += wanted.size
            if progress is not None:
                progress(pair.found.name, done, total)
        yield pair.found.name, _ratio(error, power)


def _mean(pairs: list[Pair], errors: Mapping[str, float]) -> float:
    sizes = {pair.found.name: math.prod(pair.found.shape) for pair in pairs}
    total = sum(sizes.values())
    return math.sqrt(sum(size * errors[name] ** 2 for name, size in sizes.items()) / total) if total else 0.0


def _faults(
    beyond: list[Pair], errors: Mapping[str, float], artefact: Model, wanted: Mapping[str, ModelTensor]
) -> list[str]:
    """One sentence a mistake, with the tensors that show it; those that fit no mistake come first, one by one."""
    single: list[str] = []
    groups: dict[str, list[Pair]] = {}
    for pair in beyond:
        error, kind = errors[pair.found.name], pair.found.source_dtype.lower()
        name = "" if math.isnan(error) else mistake(pair, artefact, wanted)
        if name:
            groups.setdefault(name, []).append(pair)
        elif math.isnan(error):
            single.append(f"{pair.found.name} ({kind}) holds values that are not numbers")
        else:
            single.append(f"{_measured(pair, errors)}; rounding to {kind} explains at most {pair.bound:g}")
    for name, pairs in groups.items():
        named = ", ".join(_measured(pair, errors) for pair in pairs[:SHOWN])
        more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        single.append(f"{name}: {named}{more}")
    return single


def _measured(pair: Pair, errors: Mapping[str, float]) -> str:
    return f"{pair.found.name} differs by {errors[pair.found.name]:.3g} of its size"


def mistake(pair: Pair, artefact: Model, wanted: Mapping[str, ModelTensor]) -> str:
    """The mistake that turns the source into what was found, in words; "" where none does."""
    if math.prod(pair.found.shape) > DIAGNOSED_WEIGHTS:
        return ""
    values, source = pair.found.read(0, pair.found.rows), pair.wanted.read(0, pair.wanted.rows)
    for name, changed in _mistakes(pair, source, artefact):
        if relative_error(values, changed) <= pair.bound:
            return name
    scale = float((values * source).sum(dtype=np.float64)) / max(_squares(source), 1e-30)
    if abs(scale) > 1e-6 and relative_error(values, np.float32(scale) * source) <= pair.bound:
        return f"scaled by {scale:.6g}"
    twin = _twin(values, pair, wanted)
    return f"what belongs into {twin} stands elsewhere" if twin else ""


def _mistakes(pair: Pair, source: Float32, artefact: Model) -> Iterator[tuple[str, Float32]]:
    """Yield the usual mistakes in words, and what the tensor would be with each."""
    name = pair.found.name
    if ".attn_q." in name or ".attn_k." in name:
        rows = source.reshape(-1, 1) if len(pair.found.shape) == 1 else source
        for heads in head_counts(artefact, is_key=".attn_k." in name):
            length, odd = divmod(len(rows), heads)
            if odd or length % 2:
                continue
            plain = rows.reshape(heads, length // 2, 2, -1).swapaxes(1, 2).reshape(source.shape)
            yield "the RoPE permutation of Q and K was left out, rows stand as in the checkpoint", plain
            twice = rows.reshape(heads, 2, length // 2, -1).swapaxes(1, 2).reshape(source.shape)
            yield "the RoPE permutation of Q and K was made twice, or where it does not belong", twice
    if pair.found.kind == "norm":
        yield "the 1 that this architecture adds to norm weights was left out", source - np.float32(1)
        yield "1 was added to the norm weights once too often", source + np.float32(1)
    if len(pair.found.shape) == 2 and source.shape[0] == source.shape[1]:
        yield "transposed", source.T


def head_counts(model: Model, *, is_key: bool) -> Iterator[int]:
    """Yield how many heads Q, or K and V, may have, the likeliest number first."""
    names = ("head_count_kv", "head_count") if is_key else ("head_count",)
    for name in names:
        entry = model.metadata.get(f"{model.architecture}.attention.{name}")
        if entry is not None and isinstance(entry.value, int) and entry.value > 0:
            yield entry.value


def _twin(values: Float32, pair: Pair, wanted: Mapping[str, ModelTensor]) -> str:
    """The name of the other source tensor of the same shape whose first rows are in this one, "" if there is none."""
    rows = min(COMPARED_ROWS, pair.found.rows)
    for name, other in wanted.items():
        if name == pair.found.name or other.shape != pair.found.shape:
            continue
        if relative_error(values[:rows], other.read(0, rows)) <= pair.bound:
            return name
    return ""

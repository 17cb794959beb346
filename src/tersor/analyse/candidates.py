"""Every format that a matrix could take, with the method that will be used: its packed rows, and what rounding costs.

The inputs are those of the model in full precision, so that a candidate is the same whatever the others become.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.stream import Input
from tersor.core.arrays import Bytes, Float32
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.kernels.lazy import LazyModule
from tersor.methods import Method, output_error
from tersor.methods.solving.matrix import slabs

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Errors", "candidate", "inputs_by_name"]

EXACT_BLOCK = 1
"""Formats of single numbers (f32, f16, bf16) have no grid to choose points on."""


@dataclass(frozen=True, slots=True)
class Errors:
    """What rounding one matrix to one format costs, each the root of an error over the root of what it is an error of.

    weight      of the weights themselves
    importance  weighted by the mean square of each input column; None where no input is known
    output      of what the matrix computes from the calibration inputs, their whole Hessian taken; None likewise
    method      what made the rows that were kept: "rtn" where plain rounding errs less on the calibration inputs
    """

    weight: float
    importance: float | None
    output: float | None
    method: str

    def to_object(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Mean square of each input column, float64, and their Hessian; None where nothing is known."""

    importance: Tensor | None
    hessian: Tensor | None


def inputs_by_name(inputs: Sequence[Input]) -> dict[str, dict[int | None, Sums]]:
    """Return what each matrix reads, by expert."""
    found: dict[str, dict[int | None, Sums]] = {}
    for one in inputs:
        for name in one.names:
            found.setdefault(name, {})[one.expert] = one.sums
    return found


def candidate(
    weight: Tensor,
    name: str,
    method: tuple[str, Method],
    sums: Mapping[int | None, Sums],
    *,
    hessians: dict[int | None, Tensor | None],
    threads: int = 0,
) -> tuple[QuantizedTensor, Errors]:
    """Quantize a matrix [rows, columns], or stacked ones [experts, rows, columns], to format `name`.

    method    its name and its row of METHODS; statistics that only a run through the model has are not given to it
    sums      what each expert reads (None: the matrix, where none are stacked); empty: nothing is known
    hessians  filled here with what `sums` come to, so that formats share them
    """
    fmt = get(name)
    parts: list[Bytes] = []
    totals = np.zeros(6)
    used: set[str] = set()
    stacked = weight if weight.ndim == 3 else weight[None]
    for number, matrix in enumerate(stacked):
        expert = number if weight.ndim == 3 else None
        own = sums.get(expert)
        if expert not in hessians:
            hessians[expert] = None if own is None else own.hessian()
        importance = None if own is None or not own.tokens else own.squares / own.tokens
        seen = _Seen(importance, hessians[expert])
        data, maker = _rounded(matrix, fmt, method, seen, threads)
        for rows, values in _decoded(fmt, data, matrix, threads):
            totals += _squares(matrix[rows], values, seen)
        parts.append(data)
        used.add(maker)
    data = np.concatenate(parts) if len(parts) > 1 else parts[0]
    errors = Errors(
        _ratio(*totals[:2]) or 0.0, _ratio(*totals[2:4]), _ratio(*totals[4:]), "+".join(sorted(used - {""}))
    )
    return QuantizedTensor(fmt, tuple(weight.shape), data), errors


def _rounded(weight: Tensor, fmt: Format, method: tuple[str, Method], seen: _Seen, threads: int) -> tuple[Bytes, str]:
    """The method's rows, or those of plain rounding where these err less or are all there is."""
    called, row = method
    hessian = seen.hessian
    column: Float32 | None = None
    if seen.importance is not None and bool(seen.importance.any()):
        column = seen.importance.float().numpy()
    plain = fmt.encode(weight.numpy(), importance=column, threads=threads)
    is_exact = fmt.block == EXACT_BLOCK
    if is_exact or called == "rtn" or ("hessian" in row.needs and hessian is None):
        return plain, "" if is_exact else "rtn"
    given = {"hessian": hessian} if "hessian" in row.needs else {}
    if "cross" in row.needs:
        given["cross"] = hessian  # no matrix before it has erred: there is nothing to correct
    found = row.function(weight, fmt, threads=threads, **given)
    if hessian is None:
        return found.data, called
    errors = [
        sum(output_error(weight[rows], values, hessian) for rows, values in _decoded(fmt, data, weight, threads))
        for data in (found.data, plain)
    ]
    return (plain, "rtn") if errors[0] > errors[1] else (found.data, called)


def _decoded(fmt: Format, data: Bytes, weight: Tensor, threads: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and what they decode to: of an output matrix all at once is gigabytes."""
    for rows in slabs(weight, fmt):
        yield rows, torch.from_numpy(fmt.decode(data[rows], weight.shape[1], threads=threads))


def _squares(weight: Tensor, values: Tensor, seen: _Seen) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Squared error and power: plain, weighted by importance, of the outputs."""
    error = values - weight
    found = [float(error.square().sum(dtype=torch.float64)), float(weight.square().sum(dtype=torch.float64))]
    for part in (error, weight):
        columns = part.double().square().sum(dim=0)
        found.append(0.0 if seen.importance is None else float(columns @ seen.importance))
    for part in (values, torch.zeros_like(weight)):
        found.append(0.0 if seen.hessian is None else output_error(weight, part, seen.hessian))
    return np.array(found)


def _ratio(error: float, power: float) -> float | None:
    return float((max(error, 0.0) / power) ** 0.5) if power > 0 else None

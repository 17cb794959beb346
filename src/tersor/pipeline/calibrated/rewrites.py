"""Scaling before rounding: what moves into the norm or matrix before, and what that does to the statistics.

A rewrite keeps the function of the block: the columns of the matrices that read an input are multiplied by scales,
and whatever produces the input is divided by them. Producers that llama.cpp's graph or a container does not let us
change (several readers, experts behind a router, a nonlinearity between) are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.stream import Input
from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.kernels.lazy import LazyModule
from tersor.methods import METHODS
from tersor.methods.rewrites import awq, smoothquant
from tersor.methods.rewrites.smoothquant import divided_outputs, scaled_columns

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["REWRITES", "ROTATION", "Producer", "apply", "parse_method", "producer_of", "rescale", "split_rotation"]

Weights = dict[str, "Tensor"]


def _by_awq(matrices: list[Tensor], fmt: Format, hessian: Tensor, _sums: Sums, threads: int) -> Tensor:
    return awq.input_scales(matrices, fmt, hessian=hessian, threads=threads)


def _by_smoothquant(matrices: list[Tensor], _fmt: Format, _hessian: Tensor, sums: Sums, _threads: int) -> Tensor:
    assert sums.peaks is not None, "smoothquant without the largest inputs"
    return smoothquant.input_scales(matrices, largest_input=sums.peaks)


REWRITES: Mapping[str, Callable[[list[Tensor], Format, Tensor, Sums, int], Tensor]] = {
    "awq": _by_awq,
    "smoothquant": _by_smoothquant,
}
"""Name → (weights that read an input, format, Hessian and sums of that input, threads) → scales of its columns."""

ROTATION = "hadamard"
"""Turns the whole model before anything else; see `rotated`."""


def split_rotation(text: str) -> tuple[bool, str]:
    """Split a method as it is typed into whether the model is turned before it, and the method for the turned model.

    >>> split_rotation("hadamard+gptq"), split_rotation("hadamard"), split_rotation("awq")
    ((True, 'gptq'), (True, 'rtn'), (False, 'awq'))
    """
    first, _, rest = text.partition("+")
    return (True, rest or "rtn") if first == ROTATION else (False, text)


def parse_method(text: str) -> tuple[tuple[str, ...], str]:
    """Split a method into rewrites of a block and the rounding that follows.

    Where none is named it is rtn, and behind awq clip, which is awq's own second part.

    >>> parse_method("awq+gptq"), parse_method("awq"), parse_method("best")
    ((('awq',), 'gptq'), (('awq',), 'clip'), ((), 'best'))
    """
    parts = text.split("+")
    rewrites = tuple(part for part in parts if part in REWRITES)
    rest = [part for part in parts if part not in REWRITES]
    if len(rest) > 1 or any(part not in METHODS for part in rest) or (rest and parts[-1] != rest[0]):
        raise SchemeError(
            f"unknown method {text!r}; there are {', '.join(METHODS)}, and before them {', '.join(REWRITES)}: awq+gptq"
        )
    return rewrites, rest[0] if rest else "clip" if "awq" in rewrites else "rtn"


@dataclass(frozen=True, slots=True)
class Producer:
    """What makes an input, and may be divided: rows `start` … of the tensors `names` (a weight and its bias)."""

    names: tuple[str, ...]
    start: int = 0


def producer_of(one: Input, weights: Mapping[str, Tensor]) -> Producer | None:
    """Return what may be divided for the input `one` of a block, None where nothing may."""
    if one.expert is not None:
        return None
    prefix, _, kind = one.names[0].removesuffix(".weight").rpartition(".")
    columns = int(weights[one.names[0]].shape[1])
    if kind in ("attn_q", "attn_qkv") and f"{prefix}.attn_norm.weight" in weights:
        return Producer((f"{prefix}.attn_norm.weight",))
    if kind in ("ffn_gate", "ffn_up") and f"{prefix}.ffn_norm.weight" in weights:
        is_routed = f"{prefix}.ffn_gate_inp.weight" in weights
        return None if is_routed else Producer((f"{prefix}.ffn_norm.weight",))
    if kind == "attn_output":
        return _values_of(prefix, columns, weights)
    if kind == "ffn_down" and f"{prefix}.ffn_up.weight" in weights:
        rows = int(weights[f"{prefix}.ffn_up.weight"].shape[0])
        names = (f"{prefix}.ffn_up.weight", f"{prefix}.ffn_up.bias")
        # The rows behind the gate, where the two are one.
        return Producer(tuple(name for name in names if name in weights), start=rows - columns)
    return None


def _values_of(prefix: str, columns: int, weights: Mapping[str, Tensor]) -> Producer | None:
    names = tuple(name for name in (f"{prefix}.attn_v.weight", f"{prefix}.attn_v.bias") if name in weights)
    # Under grouped attention one head of values feeds several heads of the output's input: too few scales to help.
    return Producer(names) if names and len(weights[names[0]]) == columns else None


def apply(
    rewrite: str, one: Input, weights: Weights, fmt: Format, hessian: Tensor | None, *, threads: int
) -> Tensor | None:
    """Return the scales that `rewrite` finds for the input `one`; None where there is nothing to scale by or with."""
    if hessian is None or producer_of(one, weights) is None:
        return None
    matrices = [weights[name] for name in one.names]
    scales = REWRITES[rewrite](matrices, fmt, hessian, one.sums, threads)
    return None if bool((scales == 1).all()) else scales


def rescale(one: Input, weights: Weights, scales: Tensor, norms: Format) -> tuple[str, ...]:
    """Put scales into effect: in `weights`, and in the sums of the input; return the names of the producers.

    norms  what norms are stored in: what its rounding changes goes into the columns, so that the function stays
    """
    producer = producer_of(one, weights)
    assert producer is not None, "scales for an input that nothing may be divided for"
    exact = scales
    norm = weights[producer.names[0]]
    if norm.ndim == 1:
        rows = norms.encode((norm / scales)[None].cpu().numpy())
        divided = torch.from_numpy(norms.decode(rows, len(norm))[0]).to(norm.device)
        exact = torch.where(divided != 0, norm / divided, scales)  # what the rounded quotient stands for
        weights[producer.names[0]] = divided
    else:
        for name in producer.names:
            whole = weights[name].clone()
            whole[producer.start :] = divided_outputs(whole[producer.start :], scales)
            weights[name] = whole
    for name in one.names:
        weights[name] = scaled_columns(weights[name], exact)
    _rescale_sums(one.sums, exact.double())
    return producer.names


def _rescale_sums(sums: Sums, scales: Tensor) -> None:
    sums.squares = sums.squares / scales.square()
    if sums.peaks is not None:
        sums.peaks = (sums.peaks / scales).float()
    for product in (sums.product, sums.lag):
        if product is not None:
            product.div_(scales[:, None]).div_(scales[None, :])
    if sums.residual is not None:
        sums.residual.div_(scales[None, :])

"""What won on held-out text at equal bytes: correction, static order, rounds of refinement; never worse than rtn.

Measured in docs/log.md ("Which recipe is best"). The parts are GPTQ, Qronos and coordinate descent; see their modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.methods import gptq, qronos, rtn
from tersor.methods.error import layer_error
from tersor.methods.solving.factor import checked_statistic

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["quantize"]

FINE_BITS = 4
FINE, COARSE = (0.3, 2), (0.15, 6)
"""`trust` and `rounds` from so many bits on, and below."""

WORSE = "the error on calibration inputs was {0:.4g}, rounding to nearest has {1:.4g}: that was taken"


def quantize(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    cross: Tensor | None = None,
    residual: Tensor | None = None,
    damping: float = 0.01,
    trust: float | None = None,
    rounds: int | None = None,
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight` as well as is known; on large layers refinement costs some times what GPTQ does.

    Arguments as in gptq; with `cross` (and `residual`) as in qronos. `trust` and `rounds` None: 0.3 and 2, and below 4
    bits 0.15 and 6, where every code is a larger part of the whole. Where rounding to nearest errs less on the
    calibration inputs its result is returned, and `fallback` says so.
    """
    h = checked_statistic("the Hessian", hessian, int(weight.shape[-1]))
    usual = FINE if fmt.bits >= FINE_BITS else COARSE
    trust, rounds = usual[0] if trust is None else trust, usual[1] if rounds is None else rounds
    if cross is None:
        found = gptq.quantize(weight, fmt, hessian=h, damping=damping, rounds=rounds, threads=threads)
        wanted = weight
    else:
        found, wanted = qronos.towards(
            weight,
            fmt,
            hessian=h,
            cross=cross,
            residual=residual,
            damping=damping,
            trust=trust,
            rounds=rounds,
            threads=threads,
        )
    if found.fallback is not None:
        return found
    plain = rtn.quantize(weight, fmt, importance=h.diagonal().clamp(min=0), threads=threads)
    ours, theirs = (layer_error(wanted, q, h) for q in (found, plain))
    if ours > theirs:
        return QuantizedTensor(fmt, plain.shape, plain.data, WORSE.format(ours, theirs))
    return found

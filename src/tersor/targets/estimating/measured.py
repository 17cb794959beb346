"""Rates as they were measured; `python benchmarks/mobile_estimates.py --calibrate` prints them anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from tersor.targets.estimating.rates import CALL, OPERATOR, Rates

__all__ = ["FIXED", "RATES", "rates_of"]

RATES = Rates(
    {
        "activations float32 bytes": 1.02,
        "activations int8 bytes": 11.2,
        "call": 7.16e-06,
        "convolution float32": 0.999,
        "convolution int8": 1.07,
        "depthwise float32": 2.28,
        "depthwise int8": 9.93,
        "function float32 bytes": 2.34,
        "function int8 bytes": 10.6,
        "linear float32": 0.96,
        "linear int8": 1.05,
        "operator": 9.13e-07,
        "pointwise float32": 1.0,
        "pointwise int8": 1.09,
        "pool float32 bytes": 3.22,
        "pool int8 bytes": 45.7,
        "stem float32": 1.24,
        "stem int8": 2.69,
        "weights in a cache": 1.18,
        "weights in memory": 1.33,
    },
    spread=0.35,
    source="nets of one kind of operator each in ONNX Runtime 1.32, one thread, AVX-512 VNNI, 2026-11-28",
)
"""Multiples of what peaks alone would take. Integer kernels of depthwise convolutions and pooling are slow there."""

FIXED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "onnxruntime": {name: RATES.terms[name] for name in (CALL, OPERATOR)},
        "executorch": {CALL: 5.4e-6, OPERATOR: 2.0e-7},
    }
)
"""Engine → seconds of a call and of an operator that does nothing: of nets of 2 and of 32 convolutions of 16 places."""


def rates_of(engine: str) -> Rates:
    """Return the rates with what calls and operators cost an engine by themselves; ONNX Runtime's for one not known."""
    return replace(RATES, terms={**RATES.terms, **FIXED.get(engine, FIXED["onnxruntime"])})

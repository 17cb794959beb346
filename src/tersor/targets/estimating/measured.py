"""Rates as they were measured; `python benchmarks/mobile_estimates.py --calibrate` prints them anew."""

from __future__ import annotations

from tersor.targets.estimating.rates import Rates

__all__ = ["RATES"]

RATES = Rates(
    {
        "activations float32 bytes": 0.238,
        "activations int8 bytes": 2.57,
        "call": 6.86e-06,
        "convolution float32": 1.01,
        "convolution int8": 1.08,
        "depthwise float32": 2.28,
        "depthwise int8": 10.9,
        "function float32 bytes": 0.62,
        "function int8 bytes": 0.5,
        "linear float32": 0.991,
        "linear int8": 1.07,
        "operator": 1.01e-06,
        "pointwise float32": 1.01,
        "pointwise int8": 1.13,
        "pool float32 bytes": 0.876,
        "pool int8 bytes": 12.5,
        "stem float32": 1.24,
        "stem int8": 2.68,
        "weights bytes": 0.289,
    },
    spread=0.35,
    source="ONNX Runtime 1.32 with one thread, on two shared cores with AVX-512 VNNI",
)

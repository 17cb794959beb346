"""What engines run on integers: a table, so that quantizers stand where an engine fuses them, and nowhere else.

Source: the documentation and the graph transformers of each engine, read for these versions, and what was measured here
(docs/log.md). ONNX Runtime 1.32 (QDQ transformers of its CPU provider), OpenVINO 2026.4 (low precision
transformations), TensorRT 10 ("Working with Quantized Types"), XNNPACK as ExecuTorch 1.5 uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tersor.core.errors import SchemeError
from tersor.graph.scheme import Scheme

__all__ = ["ENGINES", "PASSING", "WITH_WEIGHTS", "Engine", "engine"]

PASSING = (
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Expand"),
    *("DepthToSpace", "SpaceToDepth", "Gather", "Tile"),
)
"""Operators that move numbers and make none: what comes out lies on the grid of what went in."""
WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "DeformConv")
"""Operators that multiply by weights: those that an engine has no integers for stay in float, by name."""

_UNSIGNED = Scheme(8, signed=False, symmetric=False)
_SIGNED = Scheme(8, signed=True, symmetric=False)
_SYMMETRIC = Scheme(8, signed=True, symmetric=True)


@dataclass(frozen=True, slots=True)
class Engine:
    """A row.

    activations  how inputs and outputs are rounded
    weighted     operators with constant weights that have integer kernels
    dynamic      those of them whose inputs it rounds to a range found at run time, for a file that says so
    compressed   those it runs in float on weights that stay small in memory
    blocks       groups of weights in multiples of this many, where activations are rounded at run time; None: nowhere
    short_scales  the scales of such groups are bfloat16
    products     whether MatMul of two activations has one
    scores       how queries and keys are rounded, where it fuses an attention whose scores are a product of integers;
                 before their numbers are moved, for a quantizer behind that would break it up; None: nowhere
    joining      operators that run on integers where all their inputs are integers already
    passing      operators that move codes without decoding them
    closed       operators whose output has to be rounded, else they run in float
    fused        activation functions that disappear in the operator before them
    fuses_sum    an Add takes the unrounded output of the convolution before it
    rounds_bias  biases are int32 on the scale of input times weight
    unpacks      it makes whole bytes of 4-bit weights when it loads a file, and then computes on integers
    one_grid     all inputs of a Concat have to lie on one
    source       where this is from
    """

    name: str
    activations: Scheme
    weighted: tuple[str, ...]
    joining: tuple[str, ...]
    closed: tuple[str, ...]
    fused: tuple[str, ...]
    source: str
    dynamic: tuple[str, ...] = ()
    compressed: tuple[str, ...] = ()
    blocks: int | None = None
    short_scales: bool = False
    products: bool = True
    scores: Scheme | None = None
    passing: tuple[str, ...] = PASSING
    fuses_sum: bool = False
    rounds_bias: bool = True
    unpacks: bool = False
    one_grid: bool = True


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        "onnxruntime": Engine(
            "onnxruntime",
            activations=_UNSIGNED,  # signed ones leave the fast path of x86
            weighted=("Conv", "Gemm", "MatMul"),  # ConvTranspose runs in float, whatever stands around it
            joining=("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"),
            closed=("Conv",),
            fused=("Relu", "Clip"),
            source="onnxruntime 1.32, core/optimizer/qdq_transformer; signedness measured on AVX-512 VNNI",
            dynamic=("MatMul",),
            compressed=("MatMul",),  # a Conv decodes its weights anew in every run
            unpacks=True,  # constants are folded before operators are fused: 1.32, on 4 bits and a Cast to int8
            one_grid=False,  # QLinearConcat takes any; a Relu whose grid has negative codes keeps its Conv in float
        ),
        "openvino": Engine(
            "openvino",
            activations=_UNSIGNED,
            weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
            joining=("Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "Add", "Mul"),
            closed=(),
            fused=("Relu", "Clip", "PRelu", "LeakyRelu", "Sigmoid", "HardSwish", "Gelu", "Tanh", "Elu"),
            compressed=("Conv", "ConvTranspose", "Gemm", "MatMul"),  # and may round activations of MatMul by itself
            scores=_SYMMETRIC,  # with a zero point it takes the attention apart
            source="OpenVINO 2026.4, low precision transformations of its CPU plugin; scores and sums measured",
            rounds_bias=False,
        ),
        "tensorrt": Engine(
            "tensorrt",
            activations=_SYMMETRIC,
            weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
            joining=("Add", "AveragePool", "GlobalAveragePool", "Concat"),
            closed=(),
            fused=("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish"),
            compressed=("MatMul",),
            source="TensorRT 10, Working with Quantized Types: explicit quantization, symmetric int8",
            fuses_sum=True,
            rounds_bias=False,
        ),
        "xnnpack": Engine(
            "xnnpack",
            activations=_SIGNED,
            weighted=("Conv", "ConvTranspose", "Gemm", "MatMul"),
            joining=("Add", "Mul", "Concat", "GlobalAveragePool"),  # ExecuTorch hands it other means in float alone
            closed=("Conv", "ConvTranspose", "Gemm", "MatMul"),
            fused=("Relu", "Clip"),
            source="XNNPACK as ExecuTorch 1.5.1 uses it (partition/config): qs8-qc8w, qd8-qc8w and qd8-qb4w kernels",
            dynamic=("MatMul",),
            blocks=32,
            short_scales=True,
            products=False,
        ),
    }
)
"""Every engine; "onnxruntime" is what others read at full speed too."""


def engine(name: str) -> Engine:
    """Return a row; SchemeError names what there is."""
    if name not in ENGINES:
        raise SchemeError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    return ENGINES[name]

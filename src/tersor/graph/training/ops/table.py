"""Which function is which operator, and what of an operator is trained, is state, or is a number of the graph."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tersor.graph.training.ops import (
    activations,
    arithmetic,
    indexing,
    layers,
    normalization,
    pooling,
    reduction,
    resizing,
    rounding,
    shapes,
)
from tersor.graph.training.ops.arguments import RANGES

__all__ = ["OPS", "Operator"]


@dataclass(frozen=True)
class Operator:
    """A row of the table.

    function  of tersor.graph.training.ops, or the name of one of torch that takes the inputs and no attributes
    inline    inputs that become numbers of the call where they are known: shapes, axes, bounds
    state     inputs that are never trained: running statistics, scales of quantizers
    layer     its other inputs are weights, even where they have but one element
    several   returns one value for each output
    only      attributes that may have these values alone
    ignored   attributes that change nothing: their values are in the inputs, or the mode of the module counts instead
    random    not to be computed ahead
    """

    function: Callable[..., Any] | str
    inline: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    layer: bool = False
    several: bool = False
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    random: bool = False


_TYPES = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16)
_QUANTIZER = ("scale", "zero_point")
_REDUCE = ("axes",)
_FLOAT8 = ("saturate", "round_mode")

OPS: Mapping[str, Operator] = types.MappingProxyType({
    # Arithmetic
    "Abs": Operator("abs"),
    "Add": Operator("add"),
    "Ceil": Operator("ceil"),
    "Cos": Operator("cos"),
    "Div": Operator(arithmetic.divide),
    "Erf": Operator("erf"),
    "Exp": Operator("exp"),
    "Floor": Operator("floor"),
    "Log": Operator("log"),
    "Max": Operator(arithmetic.greatest),
    "Mean": Operator(arithmetic.mean),
    "Min": Operator(arithmetic.least),
    "Mod": Operator(arithmetic.modulo),
    "Mul": Operator("mul"),
    "Neg": Operator("neg"),
    "Pow": Operator(arithmetic.power),
    "Reciprocal": Operator("reciprocal"),
    "Round": Operator("round"),
    "Sign": Operator("sign"),
    "Sin": Operator("sin"),
    "Sqrt": Operator("sqrt"),
    "Sub": Operator("sub"),
    "Sum": Operator(arithmetic.total),
    # Logic
    "And": Operator("logical_and"),
    "Equal": Operator("eq"),
    "Greater": Operator("gt"),
    "GreaterOrEqual": Operator("ge"),
    "IsNaN": Operator("isnan"),
    "Less": Operator("lt"),
    "LessOrEqual": Operator("le"),
    "Not": Operator("logical_not"),
    "Or": Operator("logical_or"),
    "Where": Operator("where"),
    "Xor": Operator("logical_xor"),
    # Types
    "Cast": Operator(arithmetic.cast, only={"to": _TYPES}, ignored=_FLOAT8),
    "CastLike": Operator(arithmetic.cast_like, ignored=_FLOAT8),
    "Identity": Operator(arithmetic.identity),
    # Activations
    "Celu": Operator(activations.celu),
    "Clip": Operator(activations.clip, inline=("low", "high")),
    "Elu": Operator(activations.elu),
    "Gelu": Operator(activations.gelu),
    "HardSigmoid": Operator(activations.hard_sigmoid),
    "HardSwish": Operator(activations.hard_swish),
    "LeakyRelu": Operator(activations.leaky_relu),
    "LogSoftmax": Operator(activations.log_softmax),
    "Mish": Operator(activations.mish),
    "PRelu": Operator(activations.prelu, layer=True),
    "Relu": Operator("relu"),
    "Selu": Operator(activations.selu),
    "Sigmoid": Operator("sigmoid"),
    "Softmax": Operator(activations.softmax),
    "Softplus": Operator(activations.softplus),
    "Softsign": Operator(activations.softsign),
    "Swish": Operator(activations.swish),
    "Tanh": Operator("tanh"),
    "ThresholdedRelu": Operator(activations.thresholded_relu),
    # Layers
    "Conv": Operator(layers.conv, layer=True, ignored=("kernel_shape",)),
    "ConvTranspose": Operator(layers.conv_transpose, layer=True, ignored=("kernel_shape",)),
    "Einsum": Operator(layers.einsum),
    "Gemm": Operator(layers.gemm, layer=True),
    "MatMul": Operator("matmul", layer=True),
    # Normalization
    "BatchNormalization": Operator(
        normalization.batch_norm, state=("mean", "var"), layer=True, ignored=("training_mode",), random=True
    ),
    "Dropout": Operator(normalization.dropout, inline=("ratio", "_mode"), ignored=("seed",), random=True),
    "GroupNormalization": Operator(normalization.group_norm, layer=True, ignored=("stash_type",)),
    "InstanceNormalization": Operator(normalization.instance_norm, layer=True),
    "LayerNormalization": Operator(normalization.layer_norm, layer=True, ignored=("stash_type",)),
    "RMSNormalization": Operator(normalization.rms_norm, layer=True, ignored=("stash_type",)),
    # Pooling
    "AveragePool": Operator(pooling.average_pool),
    "GlobalAveragePool": Operator(pooling.global_average_pool),
    "GlobalMaxPool": Operator(pooling.global_max_pool),
    "MaxPool": Operator(pooling.max_pool, ignored=("storage_order",)),
    # Reduction
    "ArgMax": Operator(reduction.argmax),
    "ArgMin": Operator(reduction.argmin),
    "CumSum": Operator(reduction.cumulative_sum, inline=("axis",)),
    "ReduceL1": Operator(reduction.reduce_l1, inline=_REDUCE),
    "ReduceL2": Operator(reduction.reduce_l2, inline=_REDUCE),
    "ReduceLogSumExp": Operator(reduction.reduce_log_sum_exp, inline=_REDUCE),
    "ReduceMax": Operator(reduction.reduce_max, inline=_REDUCE),
    "ReduceMean": Operator(reduction.reduce_mean, inline=_REDUCE),
    "ReduceMin": Operator(reduction.reduce_min, inline=_REDUCE),
    "ReduceProd": Operator(reduction.reduce_product, inline=_REDUCE),
    "ReduceSum": Operator(reduction.reduce_sum, inline=_REDUCE),
    "ReduceSumSquare": Operator(reduction.reduce_sum_square, inline=_REDUCE),
    # Shapes
    "Concat": Operator(shapes.concat),
    "DepthToSpace": Operator(shapes.depth_to_space),
    "Expand": Operator(shapes.expand, inline=("shape",)),
    "Flatten": Operator(shapes.flatten),
    "Pad": Operator(
        shapes.pad, inline=("pads", "value", "axes"), only={"mode": ("constant", "reflect", "edge", "wrap")}
    ),
    "Reshape": Operator(shapes.reshape, inline=("shape",)),
    "Resize": Operator(
        resizing.resize,
        inline=("_roi", "scales", "sizes"),
        only={
            "antialias": (0,),
            "coordinate_transformation_mode": (
                "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
            ),
            "keep_aspect_ratio_policy": ("stretch",),
            "mode": ("nearest", "linear"),
        },
        ignored=("antialias", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "keep_aspect_ratio_policy"),
    ),
    "Shape": Operator(shapes.shape),
    "Size": Operator(shapes.size),
    "Slice": Operator(shapes.slice_, inline=("starts", "ends", "axes", "steps")),
    "SpaceToDepth": Operator(shapes.space_to_depth),
    "Split": Operator(shapes.split, inline=("split",), several=True),
    "Squeeze": Operator(shapes.squeeze, inline=("axes",)),
    "Tile": Operator(shapes.tile, inline=("repeats",)),
    "Transpose": Operator(shapes.transpose),
    "Unsqueeze": Operator(shapes.unsqueeze, inline=("axes",)),
    # Indices, and values from numbers alone
    "ConstantOfShape": Operator(indexing.constant_of_shape, inline=("shape",)),
    "Gather": Operator(indexing.gather),
    "GatherElements": Operator(indexing.gather_elements),
    "GatherND": Operator(indexing.gather_nd),
    "Range": Operator(indexing.range_, state=("start", "limit", "delta")),
    "Trilu": Operator(indexing.trilu, inline=("k",)),
    # Integers
    "DequantizeLinear": Operator(rounding.dequantize, state=_QUANTIZER, ignored=("output_dtype",)),
    "QuantizeLinear": Operator(
        rounding.quantize,
        state=_QUANTIZER,
        only={"output_dtype": (0, *RANGES)},
        ignored=("output_dtype", "precision", "saturate"),
    ),
})  # fmt: skip

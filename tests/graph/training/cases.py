"""Every operator with the attributes and shapes that change what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
random = np.random.default_rng(5)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (random.standard_normal(shape) * scale).astype(np.float32)


def positive(*shape: int) -> Array:
    return random.uniform(0.1, 3.0, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


@dataclass(frozen=True)
class Case:
    """inputs  from the first that may be constant on, they are constants in one of the runs"""

    operator: str
    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    terms: int = 0
    """Products or summands in an output: the bound of its error grows with them; 0 for smooth functions."""

    def __str__(self) -> str:
        told = "-".join(f"{name}={value}" for name, value in self.attributes.items())
        shapes = "x".join("none" if value is None else "".join(map(str, value.shape)) for value in self.inputs[:3])
        return f"{self.operator}-{shapes}-{told}-{self.opset}".replace(" ", "")


def case(operator: str, *inputs: Array | None, opset: int = 17, outputs: int = 1, terms: int = 0, **more: Any) -> Case:
    return Case(operator, inputs, more, opset, outputs, terms)


def pointwise() -> Iterator[Case]:
    x = normal(2, 3, 4)
    for operator in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Sign", "Sin", "Reciprocal"):
        yield case(operator, x)
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.2], np.float32)
    yield case("Round", halves)
    yield case("Sqrt", positive(3, 2))
    yield case("Log", positive(3, 2))
    for operator in ("Add", "Sub", "Mul", "Div"):
        yield case(operator, x, positive(3, 1))
        yield case(operator, ints(7, -7, 9), ints(2, 2, -4))
    yield case("Pow", positive(3, 2), normal(2))
    yield case("Pow", x, number(2.0))
    yield case("Pow", x, ints(2).reshape(()))
    yield case("Mod", ints(7, -7, 9), ints(3, 3, -4))
    yield case("Mod", normal(3), positive(3), fmod=1)
    for operator in ("Max", "Min", "Sum", "Mean"):
        yield case(operator, x, normal(3, 4), normal(1))
        yield case(operator, x)
    whole, other = ints(1, 2, 3), ints(2, 2, 2)
    for operator in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield case(operator, whole, other)
        yield case(operator, x, normal(4))
    for operator in ("And", "Or", "Xor"):
        yield case(operator, np.array([True, True, False]), np.array([True, False, False]))
    yield case("Not", np.array([True, False]))
    yield case("IsNaN", np.array([1, np.nan, np.inf], np.float32))
    yield case("Where", np.array([True, False, True]), normal(2, 3), normal(3))
    for to in (1, 6, 7, 9, 10, 11):
        yield case("Cast", np.array([-1.7, 0.0, 0.3, 2.9], np.float32), to=to)
    yield case("CastLike", x, ints(1), opset=17)
    yield case("Identity", x)


def activations() -> Iterator[Case]:
    x = normal(2, 3, 5, scale=3.0)
    for operator in (
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softsign",
        "Elu",
        "Celu",
        "Selu",
        "LeakyRelu",
        "HardSigmoid",
        "Softplus",
    ):
        yield case(operator, x)
    yield case("ThresholdedRelu", x)
    yield case("HardSwish", x)
    yield case("Mish", x, opset=18)
    yield case("Gelu", x, opset=20)
    yield case("Gelu", x, opset=20, approximate="tanh")
    yield case("Swish", x, opset=24)
    yield case("Swish", x, opset=24, alpha=1.7)
    yield case("LeakyRelu", x, alpha=0.3)
    yield case("Elu", x, alpha=0.7)
    yield case("Celu", x, alpha=0.7)
    yield case("Selu", x, alpha=1.2, gamma=0.9)
    yield case("HardSigmoid", x, alpha=0.1, beta=0.3)
    yield case("ThresholdedRelu", x, alpha=0.5)
    yield case("PRelu", x, np.array([0.25], np.float32))
    yield case("PRelu", x, normal(3, 1))
    yield case("Clip", x, number(0.0), number(6.0))
    yield case("Clip", x, None, number(1.0))
    yield case("Clip", x, number(-1.0))
    yield case("Clip", x)
    for operator in ("Softmax", "LogSoftmax"):
        for axis in (-1, 0, 1):
            yield case(operator, x, axis=axis)


def layers() -> Iterator[Case]:
    for dims in (1, 2, 3):
        x, w, b = normal(2, 4, *[7, 6, 5][:dims]), normal(6, 4, *[3] * dims), normal(6)
        terms = 4 * 3**dims + 1
        yield case("Conv", x, w, b, terms=terms)
        yield case("Conv", x, w, pads=[1] * 2 * dims, strides=[2] * dims, terms=terms)
        yield case("Conv", x, w, b, pads=[*[2] * dims, *[1] * dims], dilations=[2] * dims, terms=terms)
        yield case("Conv", x, normal(6, 2, *[3] * dims), b, group=2, kernel_shape=[3] * dims, terms=terms)
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            yield case("Conv", x, normal(6, 4, *[2] * dims), b, auto_pad=auto, strides=[2] * dims, terms=terms)
        t = normal(4, 6, *[3] * dims)
        yield case("ConvTranspose", x, t, b, terms=terms)
        more: dict[str, Any] = {"strides": [2] * dims, "output_padding": [1] * dims}
        yield case("ConvTranspose", x, t, b, **more, pads=[*[1] * dims, *[0] * dims], terms=terms)
        yield case("ConvTranspose", x, t, dilations=[2] * dims, pads=[1] * 2 * dims, terms=terms)
        yield case("ConvTranspose", x, normal(4, 3, *[3] * dims), b, group=2, strides=[2] * dims, terms=terms)
        yield case("ConvTranspose", x, t, b, strides=[2] * dims, auto_pad="SAME_UPPER", terms=terms)
        yield case("ConvTranspose", x, t, b, strides=[2] * dims, auto_pad="SAME_LOWER", terms=terms)
        yield case("ConvTranspose", x, t, strides=[2] * dims, output_shape=[14, 12, 10][:dims], terms=terms)
    yield case("Conv", normal(1, 8, 5, 5), normal(8, 1, 3, 3), group=8, pads=[1, 1, 1, 1], terms=9)
    yield case("Gemm", normal(3, 4), normal(4, 5), normal(5), terms=5)
    yield case("Gemm", normal(4, 3), normal(5, 4), normal(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0, terms=5)
    yield case("Gemm", normal(3, 4), normal(5, 4), transB=1, terms=5)
    yield case("MatMul", normal(2, 3, 4), normal(4, 5), terms=4)
    yield case("MatMul", normal(2, 1, 3, 4), normal(5, 4, 2), terms=4)
    yield case("MatMul", normal(4), normal(4), terms=4)
    yield case("Einsum", normal(2, 3, 4), normal(2, 4, 5), equation="bij, bjk -> bik", terms=4)
    yield case("Einsum", normal(2, 3, 4), equation="...ij->...ji", terms=1)


def normalizations() -> Iterator[Case]:
    x = normal(2, 6, 5, 4)
    stats = normal(6), normal(6), normal(6), positive(6)
    yield case("BatchNormalization", x, *stats)
    yield case("BatchNormalization", normal(3, 6), *stats, epsilon=1e-2, momentum=0.5)
    yield case("LayerNormalization", x, normal(4), normal(4))
    yield case("LayerNormalization", x, normal(5, 4), axis=2, epsilon=1e-2)
    yield case("LayerNormalization", x, normal(1, 4), normal(5, 1), axis=-2)
    yield case("RMSNormalization", x, normal(4), opset=23)
    yield case("RMSNormalization", x, normal(6, 5, 4), opset=23, axis=1, epsilon=1e-3)
    yield case("InstanceNormalization", x, normal(6), normal(6))
    yield case("InstanceNormalization", normal(2, 6, 1), normal(6), normal(6), epsilon=1e-2)
    yield case("GroupNormalization", x, normal(3), normal(3), opset=18, num_groups=3)
    yield case("GroupNormalization", x, normal(6), normal(6), opset=21, num_groups=2, epsilon=1e-3)
    yield case("Dropout", x, number(0.5))


def pools() -> Iterator[Case]:
    for dims in (1, 2, 3):
        x, two, three = normal(2, 3, *[8, 7, 6][:dims]), [2] * dims, [3] * dims
        for operator in ("MaxPool", "AveragePool"):
            terms = 3**dims if operator == "AveragePool" else 0
            yield case(operator, x, kernel_shape=three, terms=terms)
            yield case(operator, x, kernel_shape=three, strides=two, pads=[1] * 2 * dims, terms=terms)
            yield case(operator, x, kernel_shape=three, strides=two, pads=[*[1] * dims, *[2] * dims], terms=terms)
            yield case(operator, x, kernel_shape=three, strides=two, ceil_mode=1, terms=terms)
            yield case(operator, x, kernel_shape=two, strides=three, ceil_mode=1, pads=[1] * 2 * dims, terms=terms)
            for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
                yield case(operator, x, kernel_shape=three, strides=two, auto_pad=auto, terms=terms)
        yield case("MaxPool", x, kernel_shape=two, dilations=two, pads=[*[1] * dims, *[0] * dims])
        more: dict[str, Any] = {"kernel_shape": three, "count_include_pad": 1, "terms": 3**dims}
        yield case("AveragePool", x, pads=[1] * 2 * dims, **more)
        yield case("AveragePool", x, strides=two, pads=[1] * 2 * dims, ceil_mode=1, **more, opset=19)
        yield case("AveragePool", x, kernel_shape=two, dilations=two, pads=[1] * 2 * dims, opset=19, terms=2**dims)
        yield case("GlobalAveragePool", x, terms=8 * 7 * 6)
        yield case("GlobalMaxPool", x)


def reductions() -> Iterator[Case]:
    x = normal(2, 3, 4)
    names = ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "SumSquare", "LogSumExp")
    for operator in (f"Reduce{name}" for name in names):
        terms = 24 if operator in ("ReduceSum", "ReduceMean") else 0
        yield case(operator, x, opset=18, terms=terms)
        yield case(operator, x, ints(1), opset=18, terms=terms)
        yield case(operator, x, ints(-1, 0), opset=18, keepdims=0, terms=terms)
        yield case(operator, x, None, opset=18, noop_with_empty_axes=1, terms=terms)
        if operator == "ReduceSum":
            yield case(operator, x, ints(2), opset=13, terms=terms)
            continue
        yield case(operator, x, opset=13, axes=[0, 2], terms=terms)
        yield case(operator, x, opset=13, axes=[-1], keepdims=0, terms=terms)
    yield case("ReduceProd", ints(2, 3, 4), opset=13, keepdims=0)
    ties = np.array([[1, 3, 3, 0], [2, 2, 0, 0]], np.float32)
    for operator in ("ArgMax", "ArgMin"):
        yield case(operator, ties, axis=1)
        yield case(operator, ties, axis=-1, keepdims=0, select_last_index=1)
        yield case(operator, ties)
    yield case("CumSum", x, ints(1).reshape(()), terms=4)
    yield case("CumSum", x, ints(-1).reshape(()), exclusive=1, terms=4)
    yield case("CumSum", x, ints(2).reshape(()), reverse=1, terms=4)
    yield case("CumSum", x, ints(0), reverse=1, exclusive=1, terms=4)


def shapes() -> Iterator[Case]:
    x = normal(2, 3, 4)
    yield case("Reshape", x, ints(0, -1))
    yield case("Reshape", x, ints(4, 6))
    yield case("Reshape", normal(0, 3), ints(3, 0), allowzero=1)
    for axis in (0, 1, 2, 3, -1):
        yield case("Flatten", x, axis=axis)
    yield case("Transpose", x)
    yield case("Transpose", x, perm=[1, 2, 0])
    yield case("Squeeze", normal(1, 3, 1, 2))
    yield case("Squeeze", normal(1, 3, 1, 2), ints(-2))
    yield case("Unsqueeze", x, ints(0, -1))
    yield case("Unsqueeze", x, ints(4, 1))
    yield case("Concat", x, normal(2, 1, 4), normal(2, 2, 4), axis=1)
    yield case("Concat", x, x, axis=-1)
    yield case("Split", x, ints(1, 3), axis=2, outputs=2)
    yield case("Split", x, axis=-1, outputs=2)
    yield case("Split", normal(7, 2), opset=18, num_outputs=3, outputs=3)
    yield case("Slice", x, ints(0, 1), ints(1, 3))
    yield case("Slice", x, ints(-3), ints(1 << 62), ints(-1), ints(2))
    yield case("Slice", x, ints(-1, 2), ints(-(1 << 62), 0), ints(2, 1), ints(-1, -2))
    yield case("Slice", x, ints(5), ints(9), ints(1))
    yield case("Expand", normal(3, 1), ints(2, 1, 4))
    yield case("Expand", normal(3, 4), ints(1, 1))
    yield case("Tile", x, ints(1, 2, 3))
    for mode in ("constant", "reflect", "edge"):
        yield case("Pad", x, ints(0, 1, 2, 0, 2, 1), mode=mode)
        yield case("Pad", x, ints(2, 1), None, ints(-1), mode=mode, opset=18)
    yield case("Pad", x, ints(0, 1, 2, 0, 2, 1), number(1.5))
    yield case("Pad", x, ints(0, -1, 1, 0, 0, -2))
    yield case("Pad", x, ints(1, 2), None, ints(2), mode="wrap", opset=19)
    blocks = normal(2, 12, 3, 2)
    yield case("DepthToSpace", blocks, blocksize=2)
    yield case("DepthToSpace", blocks, blocksize=2, mode="CRD")
    yield case("SpaceToDepth", normal(2, 3, 4, 6), blocksize=2)
    yield case("Shape", x)
    yield case("Shape", x, start=1, end=-1)
    yield case("Size", x)


def resizes() -> Iterator[Case]:
    x = normal(2, 3, 5, 6)
    ways = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for scales in ((1, 1, 2, 2), (1, 1, 0.6, 1.7), (1, 1, 3, 0.5)):
        sizes = np.array(scales, np.float32)
        for way in ways:
            yield case("Resize", x, None, sizes, mode="linear", coordinate_transformation_mode=way)
            for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
                more: dict[str, Any] = {"coordinate_transformation_mode": way, "nearest_mode": rounding}
                yield case("Resize", x, None, sizes, mode="nearest", **more)
        yield case("Resize", x, None, sizes, opset=19, coordinate_transformation_mode="half_pixel_symmetric")
    yield case("Resize", x, None, None, ints(2, 3, 8, 1), mode="linear")
    yield case("Resize", x, None, None, ints(2, 3, 8, 1), coordinate_transformation_mode="pytorch_half_pixel")
    yield case("Resize", x, None, None, ints(7, 9), opset=18, axes=[2, 3], mode="nearest")
    yield case("Resize", normal(2, 3, 5), None, np.array([1, 1, 2], np.float32), mode="linear")


def indices() -> Iterator[Case]:
    x = normal(4, 3, 5)
    yield case("Gather", x, ints(0, -1, 2))
    yield case("Gather", x, ints(3).reshape(()), axis=-1)
    yield case("Gather", x, ints(0, 1, 2, -3).reshape(2, 2), axis=1)
    yield case("GatherElements", x, ints(0, 1, -1, 2, 0, 3).reshape(1, 3, 2))
    yield case("GatherElements", x, random.integers(-5, 5, (4, 3, 2)), axis=2)
    yield case("GatherND", x, ints(0, 1, 3, -1, 2, 0).reshape(3, 2))
    yield case("GatherND", x, ints(1, 0, 2, 2, 0, 4).reshape(2, 3))
    yield case("GatherND", x, random.integers(-3, 3, (4, 2, 1)), batch_dims=1)
    yield case("GatherND", x, random.integers(0, 3, (4, 1)), batch_dims=1)
    yield case("Trilu", normal(2, 4, 5))
    yield case("Trilu", normal(4, 5), ints(1).reshape(()), upper=0)
    yield case("Trilu", normal(4, 5), ints(-1).reshape(()))
    yield case("ConstantOfShape", ints(2, 3))
    yield case("Range", ints(2).reshape(()), ints(9).reshape(()), ints(3).reshape(()))
    yield case("Range", number(1.0), number(-1.0), number(-0.5))


def roundings() -> Iterator[Case]:
    x = np.concatenate([normal(2, 3, 3) * 40, np.array([[[0.5, 1.5, 2.5]] * 3] * 2, np.float32)], 2)
    scales = np.array([0.5, 0.3, 1.0], np.float32)
    for kind in (np.int8, np.uint8):
        yield case("QuantizeLinear", x, number(1.0), np.array(3, kind))
        yield case("QuantizeLinear", x, scales, np.array([0, 1, 2], kind), axis=1)
        codes = random.integers(0, 100, (2, 3, 4)).astype(kind)
        yield case("DequantizeLinear", codes, number(0.1), np.array(5, kind))
        yield case("DequantizeLinear", codes, scales, np.array([5, 6, 7], kind), axis=-2)
        yield case("DequantizeLinear", codes, number(0.1))
    yield case("QuantizeLinear", x, number(0.5))
    yield case("QuantizeLinear", x, number(0.01), np.array(-7, np.int16), opset=21)
    yield case("QuantizeLinear", x, number(0.01), np.array(7, np.uint16), opset=21)
    yield case("DequantizeLinear", np.array([-(1 << 30), 5], np.int32), number(0.001))
    yield case("DequantizeLinear", np.array([-300, 5], np.int16), number(0.1), np.array(9, np.int16), opset=21)
    blocks = random.integers(-9, 9, (4, 6)).astype(np.int8)
    yield case("DequantizeLinear", blocks, positive(2, 6), opset=21, axis=0, block_size=2)


CASES = [
    *pointwise(), *activations(), *layers(), *normalizations(), *pools(), *reductions(), *shapes(), *resizes(),
    *indices(), *roundings(),
]  # fmt: skip

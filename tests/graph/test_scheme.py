from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.graph.net import Net
from tersor.graph.scheme import Quantizer, Scheme

from .conftest import Array, Drawing, onnx, run

BYTES = [Scheme(8, signed=signed, symmetric=symmetric) for signed in (True, False) for symmetric in (True, False)]
WORDS = [Scheme(16, signed=signed, symmetric=False) for signed in (True, False)]


def rounding_graph(quantizer: Quantizer, rank: int) -> Any:
    d = Drawing(opset=21)
    kind = quantizer.scheme.dtype.name
    x = d.input("x", [None] * rank)
    d.constants |= {"scale": np.asarray(quantizer.scale), "zero": np.asarray(quantizer.zero_point)}
    axis: dict[str, Any] = {} if quantizer.scheme.axis is None else {"axis": quantizer.scheme.axis}
    d.add("QuantizeLinear", x, "scale", "zero", made="codes", **axis)
    d.add("DequantizeLinear", "codes", "scale", "zero", made="values", **axis)
    d.output("values", shape=[None] * rank)
    proto = d.proto()
    types = onnx.TensorProto
    number = {"uint8": types.UINT8, "int8": types.INT8, "uint16": types.UINT16, "int16": types.INT16}[kind]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("codes", number, [None] * rank))
    proto.ir_version = 10
    return proto


def engine_of_standard(quantizer: Quantizer, x: Array) -> tuple[Array, Array]:
    """Return codes and values of ONNX Runtime, node by node, which must be those of the standard's own Python."""
    import onnxruntime  # noqa: PLC0415 (skipped where it is not installed)
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    proto = rounding_graph(quantizer, x.ndim)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values, codes = session.run(None, {"x": x})
    with np.errstate(all="ignore"):
        its_values, its_codes = ReferenceEvaluator(proto).run(None, {"x": x})
    finite = np.isfinite(x / quantizer.scale) if quantizer.scheme.axis is None else np.ones(x.shape, bool)
    np.testing.assert_array_equal(codes[finite], its_codes[finite])
    np.testing.assert_array_equal(values[finite], its_values[finite])
    return codes, values


def assert_equal_to_the_standard(quantizer: Quantizer, x: Array) -> None:
    codes, values = engine_of_standard(quantizer, x)
    ours = quantizer.codes(x)
    assert ours.dtype == codes.dtype
    np.testing.assert_array_equal(ours, codes)
    np.testing.assert_array_equal(quantizer.values(ours), values)


@pytest.mark.parametrize("scheme", [*BYTES, *WORDS], ids=str)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_codes_and_values_are_those_of_quantize_linear_to_the_bit(scheme: Scheme, data: st.DataObject) -> None:
    low = data.draw(st.floats(-1e6, 1e6))
    high = low + data.draw(st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 255.0, 1e6]))
    quantizer = Quantizer.of_range(low, high, scheme)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    scale = float(quantizer.scale)
    steps = random.integers(2 * scheme.lowest - 9, 2 * scheme.highest + 9, 400)
    x = np.concatenate([
        random.normal(0, max(abs(low), abs(high)), 400), steps * scale, (steps + 0.5) * scale,  # ties
        np.nextafter(((steps + 0.5) * scale).astype(np.float32), np.float32(0)), [0.0, -0.0, low, high, 1e-45, -1e-45],
    ]).astype(np.float32)  # fmt: skip
    assert_equal_to_the_standard(quantizer, x)


@pytest.mark.parametrize("scheme", [Scheme(8, signed=True, symmetric=True, axis=axis) for axis in (0, 1, 2)], ids=str)
def test_codes_and_values_along_an_axis_are_those_of_the_standard(scheme: Scheme) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4, 5)).astype(np.float32)
    assert scheme.axis is not None
    scale = np.asarray(random.uniform(1e-3, 0.1, x.shape[scheme.axis]), np.float32)
    quantizer = Quantizer(scale, np.zeros(len(scale), np.int8), scheme)
    assert_equal_to_the_standard(quantizer, x)


def test_infinities_saturate_and_huge_numbers_raise_no_warning() -> None:
    quantizer = Quantizer.of_range(-1.0, 1.0, BYTES[0])
    x = np.array([np.inf, -np.inf, 3e38, -3e38], np.float32)
    codes = quantizer.codes(x)
    np.testing.assert_array_equal(codes, [127, -128, 127, -128])
    small = Quantizer.of_range(0.0, 1e-30, Scheme(8, signed=False, symmetric=False))
    np.testing.assert_array_equal(small.codes(x), [255, 0, 255, 0])


@pytest.mark.parametrize("scheme", [*BYTES, *WORDS, Scheme(4, signed=True, symmetric=True)], ids=str)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(low=st.floats(-(2.0**120), 2.0**120, width=32), high=st.floats(-(2.0**120), 2.0**120, width=32))
def test_a_range_is_covered_to_half_a_step_and_holds_zero_exactly(scheme: Scheme, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    quantizer = Quantizer.of_range(low, high, scheme)
    assert np.isfinite(quantizer.scale)
    assert quantizer.scale > 0
    assert scheme.lowest <= int(quantizer.zero_point) <= scheme.highest
    zero = quantizer.codes(np.zeros(1, np.float32))
    np.testing.assert_array_equal(quantizer.values(zero), [0.0])
    ends = np.array([low, high], np.float32)
    off = np.abs(quantizer.values(quantizer.codes(ends)).astype(np.float64) - ends)
    # half a step at the end that the rounded zero point leaves uncovered, and inside; float32 adds 2⁻²³ of the end
    limit = float(quantizer.scale) * 0.5
    for end, distance in zip((low, high), off.tolist(), strict=True):
        assert distance <= max(limit + 2.0**-22 * abs(end), float(np.finfo(np.float32).tiny) * 256)


@pytest.mark.parametrize("scheme", BYTES, ids=str)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1e-45, 1e-45), (0.0, 1e-39), (3.0, 5.0), (-7.0, -3.0)])
def test_ranges_of_nothing_and_on_one_side_are_sound(scheme: Scheme, low: float, high: float) -> None:
    quantizer = Quantizer.of_range(low, high, scheme)
    x = np.array([0.0, low, high], np.float32)
    off = np.abs(quantizer.values(quantizer.codes(x)) - x).max()
    assert off <= max(max(abs(low), abs(high)) / 100, 256 * np.finfo(np.float32).tiny)
    assert quantizer.scale >= np.finfo(np.float32).tiny


@pytest.mark.parametrize(
    ("low", "high"), [(-np.inf, 1.0), (0.0, np.inf), (-1.7e308, 1.7e308), (0.0, 1e300), (np.nan, 0)]
)
@pytest.mark.parametrize("scheme", BYTES[:2], ids=str)
def test_a_range_without_an_end_is_refused(low: float, high: float, scheme: Scheme) -> None:
    with pytest.raises(SchemeError, match="range"):
        Quantizer.of_range(low, high, scheme)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_bits_that_no_engine_has_are_refused(bits: int) -> None:
    with pytest.raises(SchemeError, match=f"not {bits}"):
        Scheme(bits, signed=True, symmetric=True)


def test_a_scheme_knows_its_codes_and_their_type() -> None:
    for bits, lowest, highest, kind in ((2, -2, 1, "int8"), (8, -128, 127, "int8"), (9, -256, 255, "int16")):
        scheme = Scheme(bits, signed=True, symmetric=True)
        assert (scheme.lowest, scheme.highest, scheme.dtype.name) == (lowest, highest, kind)
    unsigned = Scheme(8, signed=False, symmetric=True)
    assert (unsigned.lowest, unsigned.highest, unsigned.dtype.name) == (0, 255, "uint8")
    assert int(Quantizer.of_range(-3, 2, unsigned).zero_point) == 128


def test_rounding_twice_changes_nothing() -> None:
    x = np.random.default_rng(1).normal(0, 2, 1000).astype(np.float32)
    for scheme in [*BYTES, *WORDS]:
        quantizer = Quantizer.of_range(-3.0, 5.0, scheme)
        once = quantizer.values(quantizer.codes(x))
        np.testing.assert_array_equal(quantizer.values(quantizer.codes(once)), once)


def test_the_drawn_graph_is_a_net_too() -> None:
    d = Drawing()
    d.add("Relu", d.input("x", [2]), made="y")
    net = d.output("y").net()
    assert isinstance(net, Net)
    np.testing.assert_array_equal(run(net, {"x": np.array([-1, 2], np.float32)})["y"], [0, 2])

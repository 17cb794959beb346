"""What is written is what is meant: bit by bit in ONNX Runtime without optimizations, within a step in its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tersor.graph.corrections.rounding import round_with_statistics
from tersor.graph.net import Net
from tersor.graph.observe import activation_quantizers, batches_of, observe
from tersor.graph.placement.engines import ENGINES
from tersor.graph.placement.placing import place
from tersor.graph.ptq import QuantizedNet
from tersor.graph.simplify import simplified
from tersor.graph.writing.qdq import with_quantizers

from ..conftest import Drawing, by_name, images, mobilenet, numbers, operators, quantized, resnet, run, simulated, sqnr

engines = pytest.mark.parametrize("engine", ENGINES)


def branches() -> Drawing:
    """Values that integer and float operators and the caller read, concatenation, products and moves."""
    d = Drawing(21)
    x = d.input("x", ["batch", 3, 16, 16])
    left, right = d.add("Relu", d.conv(x, 3, 4)), d.conv(x, 3, 4, made="right")
    y = d.add("Concat", left, d.add("MaxPool", right, kernel_shape=[3, 3], pads=[1] * 4), axis=1)
    y = d.add("LeakyRelu", d.conv(y, 8, 6, strides=[2, 2]))
    z = d.add("Mul", d.add("Sigmoid", d.conv(y, 6, 6, group=3)), y)
    z = d.add("Transpose", d.add("HardSigmoid", d.conv(z, 6, 4), made="outer"), perm=[0, 2, 3, 1])
    z = d.add("Add", d.add("MatMul", z, d.weight(4, 8)), d.weight(8))
    z = d.add("MatMul", z, d.add("Transpose", z, perm=[0, 1, 3, 2]))
    d.add("Conv", d.add("AveragePool", z, kernel_shape=[2, 2]), d.weight(2, 8, 1, 1), made="last")
    return d.output("right", "outer", "last")


NETS: dict[str, Callable[[], Drawing]] = {"resnet": resnet, "mobilenet": mobilenet, "branches": branches}
nets = pytest.mark.parametrize("case", NETS)


def made_of(case: str, engine: str, **more: Any) -> QuantizedNet:
    return quantized(NETS[case]().net(), images(4, 3, 16, 16), engine=engine, **more)


@nets
@engines
def test_the_written_net_is_its_definition_to_the_bit(case: str, engine: str) -> None:
    made = made_of(case, engine)
    for x in images(3, 3, 16, 16, seed=5, count=2):
        wanted, found = simulated(made, {"x": 2 * x}), run(made.net, {"x": 2 * x})  # beyond what was calibrated
        assert list(found) == list(wanted) == [str(value.name) for value in made.source.outputs]
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@nets
def test_the_kernels_of_onnx_runtime_are_within_a_step_of_each_output(case: str) -> None:
    """See test_random_nets.py for the bound.

    Where an output is read by a Transpose before it is rounded, ONNX Runtime rounds first and returns it rounded.
    """
    made = made_of(case, "onnxruntime")
    x = images(3, 3, 16, 16, seed=5)[0]
    wanted, found = run(made.net, {"x": x}), run(made.net, {"x": x}, optimized=True)
    for name, array in wanted.items():
        if name in made.activations:
            step = float(made.activations[name].scale)
            off = np.abs(found[name] - array)
            assert off.max() <= 1.001 * step
            assert np.mean(off > step / 2) < 0.02
        assert sqnr(array, found[name]) > 45
    assert sqnr(run(made.source, {"x": x})[name], found[name]) > 15


@nets
@engines
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_stored_as_integers_and_nothing_of_them_in_float(case: str, engine: str, bits: int) -> None:
    made = made_of(case, engine, bits=bits)
    nodes = by_name(made.net)
    for name, weight in made.weights.items():
        decode = nodes[name].inputs[1].producer()
        assert decode.op_type == "DequantizeLinear"
        codes, scale, zero = (numbers(value) for value in decode.inputs)
        assert codes.dtype == zero.dtype == np.int8
        np.testing.assert_array_equal(codes, weight.codes)
        np.testing.assert_array_equal(scale, weight.quantizer.scale)
        assert not zero.any()
        assert codes.min() >= -(1 << (bits - 1))
        assert codes.max() < 1 << (bits - 1)
    held = [numbers(value) for value in made.net.graph.initializers.values()]
    large = [array.shape for array in held if array.dtype == np.float32 and array.ndim > 1]
    assert not large


@nets
@engines
def test_biases_are_int32_on_the_product_of_scales_where_the_engine_reads_them_so(case: str, engine: str) -> None:
    made = made_of(case, engine)
    nodes = by_name(made.net)
    source = by_name(made.source)
    rounded = 0
    for name, weight in made.weights.items():
        if len(nodes[name].inputs) < 3 or nodes[name].inputs[2] is None:
            continue
        decode = nodes[name].inputs[2].producer()
        assert (decode is not None) == ENGINES[engine].rounds_bias
        if decode is None:
            continue
        rounded += 1
        codes, scale, zero = (numbers(value) for value in decode.inputs)
        wanted = made.activations[source[name].inputs[0].name].scale * weight.quantizer.scale
        np.testing.assert_array_equal(scale, wanted)
        assert codes.dtype == zero.dtype == np.int32
        bias = numbers(source[name].inputs[2])
        assert np.abs(codes * wanted.astype(np.float64) - bias).max() <= wanted.max() * 0.5 * (1 + 1e-6)
    assert rounded == (len(made.placement.biases) if ENGINES[engine].rounds_bias else 0)


@nets
@engines
def test_scales_of_activations_are_scalars(case: str, engine: str) -> None:
    made = made_of(case, engine)
    quantizers = [node for node in made.net.nodes if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(made.activations)
    for node in quantizers:
        scale, zero = (numbers(value) for value in node.inputs[1:])
        assert scale.shape == zero.shape == ()
        assert zero.dtype == ENGINES[engine].activations.dtype


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (0.0, None), (-0.2, 0.4), (None, 0.3), None, (0.1, 0.6)])
@pytest.mark.parametrize("other", [None, "a float operator", "the caller", "a Concat with negative numbers"])
def test_a_function_that_is_taken_out_changes_no_code(bounds: tuple[Any, Any] | None, other: str | None) -> None:
    d = Drawing(22)
    x = d.conv(d.input("x", ["batch", 3, 8, 8]), 3, 4, made="made")
    parts = ["" if bound is None else d.constant(bound) for bound in bounds or ()]
    while parts and not parts[-1]:
        parts.pop()
    y = d.add("Relu" if bounds is None else "Clip", x, *parts, made="cut")
    z = d.add("Concat", y, d.conv(d.inputs[0].name, 3, 4), axis=1) if other and "Concat" in other else y
    d.conv(z, 8 if z != y else 4, 4, made="last")
    if other == "a float operator":
        d.output(d.add("Sin", y, made="sine"))
    if other == "the caller":
        d.output("cut")
    d.output("last")
    for engine in ENGINES:
        made = quantized(d.net(), images(4, 3, 8, 8), engine=engine)
        names = ["cut_quantized"]
        x_ = images(2, 3, 8, 8, seed=3)[0]
        found = run(made.net, {"x": x_}, watched=names)
        wanted = simulated(made, {"x": x_})
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        held = {"Relu", "Clip"} & set(operators(made.net))
        reaches = made.activations["cut"].codes(np.array([bounds[0] if bounds and bounds[0] else 0.0], np.float32))
        if ENGINES[engine].activations.symmetric or (other and "Concat" in other and ENGINES[engine].one_grid):
            continue  # codes are left below and above: the function has to stay
        assert bool(held) == (int(reaches[0]) != made.placement.engine.activations.lowest and bounds != (None, 0.3))


def test_a_clip_with_computed_bounds_or_nan_stays() -> None:
    for bound in ("computed", "nan"):
        d = Drawing(23)
        x = d.input("x", ["batch", 3, 8, 8])
        high = d.add("ReduceMax", x, keepdims=0) if bound == "computed" else d.constant(np.nan)
        y = d.add("Clip", d.conv(x, 3, 4), d.constant(0.0), high)
        net = d.output(d.conv(y, 4, 4, made="y")).net()
        if bound == "nan":
            placement = place(simplified(net), ENGINES["onnxruntime"])
            batches = batches_of(net, images(1, 3, 8, 8))
            seen = observe(simplified(net), batches, ["x"], threads=1)
            quantizers = dict.fromkeys(placement.activations, activation_quantizers_of_x(placement, seen))
            made = with_quantizers(
                simplified(net), placement, quantizers, round_with_statistics(simplified(net), placement, "rtn", {})
            )
            assert operators(made)["Clip"] == 1
            continue
        assert operators(quantized(net, images(2, 3, 8, 8)).net)["Clip"] == 1


def activation_quantizers_of_x(placement: Any, seen: Any) -> Any:
    only = replace(placement, sites=tuple(site for site in placement.sites if site.value == "x"))
    return activation_quantizers(only, seen, "minmax")["x"]


def test_names_that_the_net_has_already_are_not_taken_again() -> None:
    d = Drawing(24)
    x = d.input("x", ["batch", 3, 8, 8])
    y = d.conv(x, 3, 4, made="x_quantized", name="x_quantize")
    y = d.conv(d.add("Relu", y, made="x_scale"), 4, 4, made="x_zero_point", name="x_dequantize")
    y = d.add("Add", y, d.conv(y, 4, 4, made="c0_quantized"), made="x_dequantized", name="conv0_bias")
    d.conv(y, 4, 4, made="c0_quantized_dequantized", name="c0_quantized_dequantize")
    d.output("c0_quantized_dequantized", "x_dequantized")
    made = quantized(d.net(), images(2, 3, 8, 8))
    again = Net(made.net.model)
    x_ = images(2, 3, 8, 8, seed=4)[0]
    for name, array in simulated(made, {"x": x_}).items():
        np.testing.assert_array_equal(run(again, {"x": x_})[name], array)
    values = [str(value.name) for node in made.net.nodes for value in node.outputs]
    values += [*made.net.graph.initializers, "x"]
    assert len(set(values)) == len(values)
    names = [str(node.name) for node in made.net.nodes]
    assert len(set(names)) == len(names)


def test_a_bias_that_int32_cannot_hold_stays_in_float() -> None:
    d = Drawing(25)
    x = d.input("x", ["batch", 3, 8, 8])
    y = d.add("Conv", x, d.constant(d.random.normal(0, 1e-6, (4, 3, 3, 3))), d.constant([1e6, 0, 0, 0]), made="y")
    made = quantized(d.output(y).net(), images(2, 3, 8, 8))
    node = by_name(made.net)["conv0"]
    assert node.inputs[2].producer() is None
    x_ = images(1, 3, 8, 8)[0]
    assert sqnr(run(made.source, {"x": x_})["y"], run(made.net, {"x": x_})["y"]) > 30


def test_other_biases_are_put_in_the_place_of_their_own() -> None:
    net = simplified(resnet().net())
    placement = place(net, ENGINES["onnxruntime"])
    seen = observe(net, batches_of(net, images(2, 3, 16, 16)), placement.activations, threads=1)
    activations = activation_quantizers(placement, seen, "minmax")
    weights = round_with_statistics(net, placement, "rtn", {})
    before = net.to_bytes()
    plain = with_quantizers(net, placement, activations, weights)
    bias = np.arange(10, dtype=np.float32)
    (last,) = (str(node.name) for node in net.nodes if node.op_type == "Gemm")
    changed = with_quantizers(net, placement, activations, weights, {last: bias})
    x = images(1, 3, 16, 16)[0]
    (node,) = (node for node in net.nodes if node.op_type == "Gemm")
    wanted = run(plain, {"x": x})["logits"] - numbers(node.inputs[2]) + bias
    np.testing.assert_allclose(run(changed, {"x": x})["logits"], wanted, atol=0.01)
    assert net.to_bytes() == before


def test_a_net_without_sites_is_written_as_it_is() -> None:
    d = Drawing(26)
    net = d.output(d.add("Softmax", d.input("x", ["batch", 4]), made="y")).net()
    made = quantized(net, images(2, 4))
    assert operators(made.net) == {"Softmax": 1}

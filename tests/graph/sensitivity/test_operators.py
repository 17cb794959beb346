"""Sensitivities against the definition, measured with nets that are quantized anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.graph.net import Net
from tersor.graph.observe import batches_of
from tersor.graph.ptq import QuantizedNet, Recipe, quantize_net
from tersor.graph.sensitivity.operators import sensitivities
from tersor.graph.sensitivity.rebuild import roundings_of, with_left
from tersor.graph.sessions import Session

from .. import conftest
from ..conftest import Drawing, images, operators, run, sqnr

onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")

X = [np.random.default_rng(number).standard_normal((4, 3, 6, 6)).astype(np.float32) for number in range(2)]


@pytest.fixture(scope="module")
def net() -> Net:
    """Convolution, a residual, a second one with an outlier channel, a classifier."""
    random = np.random.default_rng(0)
    shapes = {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3), "w2": (5, 144)}
    weights = {name: random.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}
    weights["w1"][0] *= 20
    make: Any = onnx.helper
    nodes = [
        make.make_node("Conv", ["x", "w0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        make.make_node("Relu", ["a"], ["b"], name="relu"),
        make.make_node("Conv", ["b", "w1"], ["c"], name="second", pads=[1, 1, 1, 1]),
        make.make_node("Add", ["b", "c"], ["d"], name="sum"),
        make.make_node("Flatten", ["d"], ["e"], name="flat"),
        make.make_node("Gemm", ["e", "w2"], ["y"], name="last", transB=1),
    ]
    graph = make.make_graph(
        nodes,
        "net",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 6, 6])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    return Net.parse(model.SerializeToString(), "net")


@pytest.fixture(scope="module")
def quantized(net: Net) -> QuantizedNet:
    return quantize_net(net, X, Recipe(bits=4), threads=1)


def noise(net: Net, other: Net) -> float:
    wanted, found = (
        np.concatenate([Session(one).first({"x": x}) for x in X]).astype(np.float64) for one in (net, other)
    )
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def test_leaving_operators_is_as_quantizing_without_them(net: Net, quantized: QuantizedNet) -> None:
    for left in ([], ["second"], ["first", "last"]):
        again = quantize_net(net, X, Recipe(bits=4, left=tuple(left)), threads=1)
        np.testing.assert_array_equal(
            Session(with_left(quantized, left).net).first({"x": X[0]}), Session(again.net).first({"x": X[0]})
        )
    everything = with_left(quantized, quantized.placement.integer)
    assert noise(net, everything.net) == pytest.approx(0, abs=1e-12)


def test_gains_are_those_of_the_definition(net: Net, quantized: QuantizedNet) -> None:
    rows = sensitivities(quantized, batches_of(net, X))
    assert [row.gain for row in rows] == sorted((row.gain for row in rows), reverse=True)
    assert {row.node for row in rows} == {"first", "second", "last"}
    whole = noise(net, quantized.net)
    for row in rows:
        without = noise(net, quantize_net(net, X, Recipe(bits=4, left=(row.node,)), threads=1).net)
        others = tuple(name for name in quantized.placement.integer if name != row.node)
        alone = noise(net, quantize_net(net, X, Recipe(bits=4, left=others), threads=1).net)
        assert row.without == pytest.approx(without, rel=1e-6)
        assert row.alone == pytest.approx(alone, rel=1e-6)
        assert row.gain == pytest.approx(1 - without / whole, rel=1e-6, abs=1e-6)
        assert row.alone_db == pytest.approx(-10 * np.log10(alone), rel=1e-6)
    assert rows[-1].weights in (108, 144, 720)


def test_a_mix_has_each_operator_as_its_own_width_rounds_it(net: Net) -> None:
    batches = batches_of(net, X)
    roundings = roundings_of(net, batches, Recipe(), (4, 8), threads=1)
    for bits, made in roundings.nets.items():
        alone = quantize_net(net, batches, Recipe(bits=bits), threads=1)
        assert made.net.to_bytes() == alone.net.to_bytes(), "float net and ranges do not depend on the width"
    mixed = roundings.mixed({"first": "int8", "second": "int4", "last": "fp16"})
    assert set(mixed.weights) == {"first", "second"}
    for name, bits in (("first", 8), ("second", 4)):
        assert mixed.weights[name] is roundings.nets[bits].weights[name]
        np.testing.assert_array_equal(mixed.biases[name], roundings.nets[bits].biases[name])
    assert mixed.recipe.left == mixed.recipe.halved == ("last",)
    assert operators(mixed.net)["Cast"] == 2, "from 16 bits, and from halves of bytes"
    sizes = [len(roundings.mixed({"last": kind}).net.to_bytes()) for kind in ("fp16", "fp32")]
    assert sizes[1] - sizes[0] == pytest.approx(2 * 720, abs=300)
    left = dict.fromkeys(("first", "second", "last"), "fp32")
    assert noise(net, roundings.mixed(left).net) == pytest.approx(0, abs=1e-12)


def test_a_weight_that_operators_share_is_stored_once_with_other_bits() -> None:
    d = Drawing(4)
    x, weight = d.input("x", ["batch", 64]), d.weight(64, 64)
    for number in range(3):
        x = d.add("Relu", d.add("Gemm", x, weight, name=f"loop{number}"))
    net, data = d.output(x).net(), images(8, 64)
    made = conftest.quantized(net, data, bits=4)
    wide = with_left(made, wide=list(made.weights))
    assert len({id(weight) for weight in wide.weights.values()}) == 1
    assert len(wide.net.to_bytes()) < len(net.to_bytes())


def test_wide_weights_do_not_keep_corrections_of_narrow_ones() -> None:
    d = Drawing(3)
    x = d.input("x", ["batch", 16])
    x = d.add("Relu", d.add("Gemm", x, d.weight(16, 16), d.weight(16), name="first"))
    d.add("Gemm", x, d.weight(16, 16), d.weight(16), name="second", made="y")
    net, data = d.output("y", shape=["batch", 16]).net(), [images(64, 16, seed=1)[0] + 2]
    made = conftest.quantized(net, data, bits=2, biases=True)
    assert set(made.biases) == {"first", "second"}
    wide = with_left(made, wide={"first", "second"})
    assert not wide.biases
    assert with_left(made, wide={"first"}).biases.keys() == {"second"}
    plain = conftest.quantized(net, data, bits=8)
    feeds = {"x": data[0]}
    wanted = run(net, feeds)["y"]
    assert sqnr(wanted, run(wide.net, feeds)["y"]) > sqnr(wanted, run(plain.net, feeds)["y"]) - 1

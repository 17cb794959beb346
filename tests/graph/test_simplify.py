"""The plain net computes what the net did: compared in ONNX Runtime, node by node, within a bound that is derived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tersor.graph.net import Net, constant
from tersor.graph.simplify import simplified

from .conftest import Array, Drawing, images, mobilenet, operators, resnet, run

EPS = float(np.finfo(np.float32).eps)


def conv(d: Drawing, x: str, **more: Any) -> str:
    return d.conv(x, 4, 6, **more)


def transposed(d: Drawing, x: str, *, bias: bool = True, outputs: int = 6, **more: Any) -> str:
    parts = [d.weight(4, outputs // more.get("group", 1), 3, 3), *([d.weight(outputs)] if bias else [])]
    return d.add("ConvTranspose", x, *parts, **more)


def gemm(d: Drawing, x: str, bias: tuple[int, ...] | None = (6,), **more: Any) -> str:
    flat = d.add("Flatten", d.add("GlobalAveragePool", x))
    weight = d.weight(6, 4) if more.get("transB") else d.weight(4, 6)
    return d.add("Gemm", flat, weight, *([d.constant(d.random.normal(0, 1, bias))] if bias is not None else []), **more)


FOLDED: dict[str, Callable[[Drawing, str], str]] = {
    "convolution": conv,
    "without bias": lambda d, x: conv(d, x, bias=False),
    "in groups": lambda d, x: d.conv(x, 4, 6, group=2),
    "depthwise": lambda d, x: d.conv(x, 4, 4, group=4),
    "transposed": transposed,
    "transposed, without bias": lambda d, x: transposed(d, x, bias=False, strides=[2, 2]),
    "linear": gemm,
    "linear, transB": lambda d, x: gemm(d, x, transB=1),
    "linear, alpha and beta": lambda d, x: gemm(d, x, transB=1, alpha=0.5, beta=-2.0),
    "linear, beta": lambda d, x: gemm(d, x, beta=0.25),
    "linear, one bias": lambda d, x: gemm(d, x, (1,), beta=3.0),
    "linear, scalar bias": lambda d, x: gemm(d, x, ()),
    "linear, bias in a row": lambda d, x: gemm(d, x, (1, 6)),
    "linear, without bias": lambda d, x: gemm(d, x, None, beta=7.0),
}


@pytest.mark.parametrize("case", FOLDED)
@pytest.mark.parametrize("is_output", [False, True])
def test_a_batch_norm_is_folded_into_what_is_before_it(case: str, is_output: bool) -> None:
    d = Drawing(7)
    y = FOLDED[case](d, d.input("x", ["batch", 4, 5, 7]))
    channels = 4 if case == "depthwise" else 6
    y = d.norm(y, channels, epsilon=0.01, made="normed")
    net = d.output(y if is_output else d.add("Sigmoid", y, made="y")).net()
    plain = simplified(net)
    assert "BatchNormalization" not in operators(plain)
    assert [value.name for value in plain.outputs] == [value.name for value in net.outputs]
    assert_same(net, plain, images(3, 4, 5, 7))


def assert_same(net: Net, plain: Net, batches: list[Array]) -> None:
    """Each of a sum's n products is off by (n + 3) half units in the last place, for the two orders of factors.

    n is at most 4·9 here and what cancels is within a factor of 32 of what is left: 2·32·(36 + 3)·ε/2 of the largest.
    """
    name = str(net.inputs[0].name)
    for x in batches:
        wanted, found = run(net, {name: x}), run(plain, {name: x})
        assert list(wanted) == list(found)
        for key, array in wanted.items():
            np.testing.assert_allclose(found[key], array, rtol=0, atol=32 * 39 * EPS * np.abs(array).max())


def read_twice(d: Drawing, x: str) -> str:
    y = conv(d, x)
    return d.add("Add", d.norm(y, 6), y)


def returned(d: Drawing, x: str) -> str:
    y = conv(d, x)
    d.output(y, shape=["batch", 6, 5, 7])
    return d.norm(y, 6)


def computed_weights(d: Drawing, x: str) -> str:
    return d.norm(d.add("Conv", x, d.add("Mul", d.weight(6, 4, 3, 3), d.add("ReduceMax", x, keepdims=0))), 6)


def computed_bias(d: Drawing, x: str) -> str:
    bias = d.add("Expand", d.add("ReduceMax", x, keepdims=0), d.constant([6], kind="int64"))
    return d.norm(d.add("Conv", x, d.weight(6, 4, 3, 3), bias), 6)


def in_training(d: Drawing, x: str) -> str:
    parts = [d.constant(each) for each in np.ones((4, 6))]
    return d.add("BatchNormalization", conv(d, x), *parts, outputs=3, training_mode=1)


UNFOLDED: dict[str, Callable[[Drawing, str], str]] = {
    "read twice": read_twice,
    "returned": returned,
    "computed weights": computed_weights,
    "computed bias": computed_bias,
    "in training": in_training,
    "transposed in groups": lambda d, x: d.norm(transposed(d, x, group=2), 6),
    "after something else": lambda d, x: d.norm(d.add("Sigmoid", conv(d, x)), 6),
}


@pytest.mark.parametrize("case", UNFOLDED)
def test_a_batch_norm_stays_where_folding_would_change_something(case: str) -> None:
    d = Drawing(8)
    y = d.add("Relu", UNFOLDED[case](d, d.input("x", ["batch", 4, 5, 7])), made="y")
    net = d.output(y).net()
    plain = simplified(net)
    assert operators(plain)["BatchNormalization"] == 1
    assert_same(net, plain, images(3, 4, 5, 7))


def test_weights_that_two_convolutions_share_are_folded_apart() -> None:
    d = Drawing(9)
    x = d.input("x", ["batch", 4, 5, 7])
    kernel, bias = d.weight(4, 4, 3, 3), d.weight(4)
    y = d.norm(d.add("Conv", x, kernel, bias, pads=[1] * 4), 4)
    z = d.norm(d.add("Conv", y, kernel, bias, pads=[1] * 4), 4)
    net = d.output(d.add("Conv", z, kernel, bias, made="y")).net()
    plain = simplified(net)
    assert "BatchNormalization" not in operators(plain)
    assert_same(net, plain, images(2, 4, 5, 7))
    np.testing.assert_array_equal(constant(net.value(kernel)), d.constants[kernel])


def test_two_batch_norms_in_a_row_are_both_folded_and_the_net_itself_stays() -> None:
    d = Drawing(10)
    y = d.norm(d.norm(conv(d, d.input("x", ["batch", 4, 5, 7]), bias=False), 6), 6)
    net = d.output(y).net()
    before = net.to_bytes()
    plain = simplified(net)
    assert operators(plain) == {"Conv": 1}
    assert net.to_bytes() == before
    assert_same(net, plain, images(2, 4, 5, 7))


def test_what_does_nothing_at_rest_is_taken_out() -> None:
    d = Drawing(11)
    x = d.input("x", ["batch", 4, 5, 7])
    y = d.add("Identity", conv(d, d.add("Dropout", d.add("Identity", x))))
    net = d.output(d.add("Relu", d.add("Dropout", y, d.constant(0.3), d.constant(False, kind="bool")), made="y")).net()
    plain = simplified(net)
    assert operators(plain) == {"Conv": 1, "Relu": 1}
    assert_same(net, plain, images(2, 4, 5, 7))


@pytest.mark.parametrize("case", ["always on", "switched by an input", "mask is read", "is the output"])
def test_a_dropout_that_does_something_stays(case: str) -> None:
    d = Drawing(12)
    x = d.input("x", ["batch", 4])
    y = d.add("Relu", x)
    if case == "always on":
        y = d.add("Dropout", y, d.constant(0.3), d.constant(True, kind="bool"))
    elif case == "switched by an input":
        y = d.add("Dropout", y, d.constant(0.3), d.input("on", [], "bool"))
    elif case == "mask is read":
        y = d.add("Dropout", y, outputs=2)
        y = d.add("Where", f"{y}_1", y, x)
    else:
        d.output(d.add("Dropout", y, made="y"))
    if case != "is the output":
        d.output(d.add("Neg", y, made="y"))
    plain = simplified(d.net())
    assert operators(plain)["Dropout"] == 1
    assert [value.name for value in plain.outputs] == ["y"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2]])
@pytest.mark.parametrize("is_output", [False, True])
def test_a_mean_over_all_places_becomes_a_pooling(opset: int, axes: list[int], is_output: bool) -> None:
    d = Drawing(13, opset=opset)
    x = d.input("x", ["batch", 4, 5, 7])
    told = {"axes": axes} if opset < 18 else {}
    more = [] if told else [d.constant(axes, kind="int64")]
    y = d.add("ReduceMean", x, *more, **told, made="mean")
    net = d.output(y if is_output else d.add("Relu", y, made="y")).net()
    plain = simplified(net)
    assert operators(plain)["GlobalAveragePool"] == 1
    assert_same(net, plain, images(2, 4, 5, 7))


@pytest.mark.parametrize(
    ("shape", "kind", "more"),
    [
        (["batch", 4, 5, 7], "float32", {"axes": [2, 3], "keepdims": 0}),
        (["batch", 4, 5, 7], "float32", {"axes": [1, 2]}),
        (["batch", 4, 5, 7], "float32", {"axes": [3]}),
        (["batch", 4, 5, 7], "float32", {}),
        (["batch", 4], "float32", {"axes": [1]}),
        (["batch", 4, 5, 7], "int32", {"axes": [2, 3]}),
    ],
)
def test_other_means_stay(shape: list[int | str], kind: str, more: dict[str, Any]) -> None:
    d = Drawing(14, opset=13)
    y = d.add("ReduceMean", d.input("x", shape, kind), made="y", **more)
    plain = simplified(d.output(y, kind=kind).net())
    assert operators(plain) == {"ReduceMean": 1}


def test_weights_that_are_only_moved_are_moved_at_once() -> None:
    d = Drawing(15)
    x = d.input("x", ["batch", 6])
    weight = d.add("Transpose", d.weight(8, 6), perm=[1, 0])
    y = d.add("MatMul", x, weight)
    cube = d.add("Transpose", d.weight(2, 3, 8))
    again = d.add("Reshape", cube, d.constant([8, -1], kind="int64"))
    y = d.add("MatMul", y, d.add("Squeeze", d.add("Unsqueeze", again, d.constant([0], kind="int64"))))
    net = d.output(y).net()
    plain = simplified(net)
    assert operators(plain) == {"MatMul": 2}
    assert_same(net, plain, images(3, 6))


def test_names_are_given_to_those_without_and_kept_by_the_first_that_has_one() -> None:
    d = Drawing(16)
    x = d.input("x", ["batch", 4])
    for name in ("", "", "Relu_0", "twice", "twice", "Relu_1", ""):
        x = d.add("Relu", x, name=name)
    net = d.output(x).net()
    names = [str(node.name) for node in simplified(net).nodes]
    assert len(set(names)) == len(names) == 7
    assert "" not in names
    assert [names[2], names[3], names[5]] == ["Relu_0", "twice", "Relu_1"]
    assert [str(node.name) for node in simplified(simplified(net)).nodes] == names


def test_operators_of_other_domains_are_not_taken_for_those_of_the_standard() -> None:
    d = Drawing(17)
    d.domains["mine"] = 1
    x = d.input("x", ["batch", 4, 5, 7])
    y = d.add("BatchNormalization", conv(d, x), domain="mine")
    y = d.add("Identity", d.add("Dropout", y, domain="mine"), domain="mine")
    d.outputs.append(d.inputs[0].__class__())
    d.outputs[0].CopyFrom(d.inputs[0])
    d.outputs[0].name = y
    assert operators(simplified(d.net())) == {"Conv": 1, "BatchNormalization": 1, "Dropout": 1, "Identity": 1}


@pytest.mark.parametrize("make", [resnet, mobilenet])
def test_whole_nets_stay_what_they_were(make: Callable[[], Drawing]) -> None:
    net = make().net()
    plain = simplified(net)
    assert "BatchNormalization" not in operators(plain)
    x = images(2, 3, 16, 16)[0]
    wanted, found = run(net, {"x": x})["logits"], run(plain, {"x": x})["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.corrections.equalize import equalized, pairs_of
from tersor.graph.net import Net, constant

from ..conftest import Drawing, run


def uneven(d: Drawing, channels: int) -> None:
    """Make the outputs of the last weight very different in size."""
    name = next(name for name in reversed(d.constants) if d.constants[name].ndim > 1)
    factors = np.geomspace(0.02, 30, channels).astype(np.float32)
    weight = d.constants[name]
    d.constants[name] = weight * factors.reshape(-1, *[1] * (weight.ndim - 1))


def chain(middle: str) -> Net:
    d = Drawing(11)
    x = d.input("x", ["b", 3, 8, 8])
    x = d.conv(x, 3, 8)
    uneven(d, 8)
    if middle == "depthwise":
        x = d.conv(d.add("Relu", x), 8, 8, group=8)
        uneven(d, 8)
        x = d.add("Relu", x)
    elif middle == "prelu":
        x = d.add("PRelu", x, d.constant(np.linspace(0.1, 0.5, 8).reshape(8, 1, 1)))
    elif middle == "pool":
        x = d.add("MaxPool", d.add("Relu", x), kernel_shape=[2, 2])
    elif middle == "clip":
        x = d.add("Clip", x, d.constant(0.0), d.constant(6.0))
    elif middle == "flat":
        x = d.add("Flatten", d.add("Relu", x))
        d.add("Gemm", x, d.weight(5, 8 * 64), d.weight(5), transB=1, made="y")
        return d.output("y").net()
    elif middle == "transposed":
        x = d.add("ConvTranspose", d.add("Relu", x), d.weight(8, 8, 2, 2), d.weight(8), strides=[2, 2])
        x = d.add("LeakyRelu", x)
    elif middle == "two readers":
        x = d.add("Relu", x)
        d.output(d.conv(x, 8, 2))
    groups = 2 if middle == "pool" else 1
    d.add("Conv", x, d.weight(4, 8 // groups, 3, 3), d.weight(4), group=groups, made="y")
    return d.output("y").net()


def spread(net: Net, node: Any, axis: int) -> Any:
    weight = constant(node.inputs[1])
    assert weight is not None
    return np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)


@pytest.mark.parametrize("middle", ["relu", "depthwise", "prelu", "pool", "flat", "transposed"])
def test_the_function_stays_within_float32_and_weights_share_their_range(middle: str) -> None:
    net = chain("relu" if middle == "relu" else middle)
    made = equalized(net)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    wanted, got = run(net, {"x": x})["y"], run(made, {"x": x})["y"]
    assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()
    pairs = list(pairs_of(made))
    assert len(pairs) == (2 if middle in ("depthwise", "transposed") else 1)
    first, second = spread(net, next(pairs_of(net)).first, 0), spread(made, pairs[0].first, 0)
    assert second.max() / second.min() < 0.5 * first.max() / first.min()


def test_two_layers_meet_in_the_geometric_mean_of_their_ranges() -> None:
    net = chain("relu")
    pair, made = next(pairs_of(net)), next(pairs_of(equalized(net)))
    product = spread(net, pair.first, 0) * spread(net, pair.second, 1)
    np.testing.assert_allclose(spread(net, made.first, 0), np.sqrt(product), rtol=1e-3)
    np.testing.assert_allclose(spread(net, made.second, 1), np.sqrt(product), rtol=1e-3)


@pytest.mark.parametrize("middle", ["clip", "two readers"])
def test_what_a_factor_does_not_pass_through_is_left_alone(middle: str) -> None:
    net = chain(middle)
    assert not list(pairs_of(net))
    assert equalized(net).to_bytes() == net.to_bytes()


def test_a_matrix_with_an_add_behind_it_is_scaled_with_its_bias() -> None:
    d = Drawing(12)
    x = d.add("Add", d.add("MatMul", d.input("x", ["b", 4]), d.weight(4, 6)), d.weight(6))
    d.add("Gemm", d.add("Relu", x), d.weight(6, 3), d.weight(3), made="y")
    net = d.output("y").net()
    made = equalized(net)
    feeds = {"x": np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)}
    np.testing.assert_allclose(run(made, feeds)["y"], run(net, feeds)["y"], atol=1e-5)
    assert made.to_bytes() != net.to_bytes()


def test_a_weight_with_two_readers_stays_one() -> None:
    """A copy for each reader would make the file larger."""
    d = Drawing(12)
    x, weight = d.input("x", ["b", 4, 6, 6]), d.weight(4, 4, 1, 1)
    y = d.conv(d.add("Relu", d.add("Conv", x, weight, d.weight(4))), 4, 2)
    d.output(y, d.add("Conv", x, weight, made="z"))
    assert not list(pairs_of(d.net()))


@pytest.mark.parametrize("kind", ["channels then time", "pooled features", "features in rows"])
def test_axes_that_are_no_channels_are_left_alone(kind: str) -> None:
    """Sizes that happen to be equal, or multiples, are no reason."""
    d = Drawing(13)
    if kind == "channels then time":
        x = d.add("Relu", d.add("Conv", d.input("x", ["b", 3, 16]), d.weight(8, 3, 3), d.weight(8), pads=[1, 1]))
        uneven(d, 8)
        d.add("MatMul", x, d.weight(16, 10), made="y")
    elif kind == "pooled features":
        x = d.add("Add", d.add("MatMul", d.input("x", ["b", 3, 6]), d.weight(6, 12)), d.weight(12))
        x = d.add("MaxPool", x, kernel_shape=[3], pads=[1, 1])
        d.add("MatMul", x, d.weight(12, 4), made="y")
    else:
        x = d.add("Add", d.add("MatMul", d.input("x", ["b", 3, 6]), d.weight(6, 4)), d.weight(4))
        d.add("MatMul", d.add("Flatten", x), d.weight(12, 4), made="y")
    net = d.output("y").net()
    assert not list(pairs_of(net))
    assert equalized(net).to_bytes() == net.to_bytes()


def test_known_activations_are_balanced_against_what_reads_them() -> None:
    net = chain("relu")
    pair = next(pairs_of(net))
    seen = np.geomspace(1, 100, 8)
    made = equalized(net, largest={pair.value: seen}, strength=1.0)
    factors = spread(net, pair.first, 0) / spread(made, next(pairs_of(made)).first, 0)
    np.testing.assert_allclose(factors, seen / 10, rtol=1e-5)
    assert equalized(net, largest={}).to_bytes() == net.to_bytes()
    with pytest.raises(SchemeError, match="between 0 and 1"):
        equalized(net, strength=1.5)

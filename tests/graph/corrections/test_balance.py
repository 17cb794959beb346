from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tersor.graph.corrections.balance import balanced, channel_widths, shares
from tersor.graph.corrections.channels import channels_of
from tersor.graph.net import Net
from tersor.graph.placement.engines import engine
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import Placement
from tersor.graph.simplify import simplified

from ..conftest import Drawing, images, quantized, run, sqnr
from ..test_random_nets import each_net

FEEDS = [{"x": np.random.default_rng(seed).standard_normal((8, 3, 8, 8)).astype(np.float32)} for seed in (1, 2)]


def uneven(d: Drawing, channels: int) -> None:
    """Let the channels that the last convolution makes be of very different widths."""
    name = [name for name in d.constants if d.constants[name].ndim > 1][-1]
    factors = np.geomspace(0.1, 1, channels).astype(np.float32)[d.random.permutation(channels)]
    d.constants[name] = d.constants[name] * factors.reshape(-1, 1, 1, 1)


def stream(*, pads: bool = False, seed: int = 3) -> Net:
    """Two residual blocks and a classifier; `pads`: the second starts with fewer places and more channels."""
    d = Drawing(seed)
    x = d.conv(d.input("x", ["b", 3, 8, 8]), 3, 8)
    uneven(d, 8)
    x = d.add("Relu", x)
    y = d.conv(d.add("Relu", d.conv(x, 8, 8)), 8, 8)
    uneven(d, 8)
    x = d.add("Relu", d.add("Add", y, x))
    if pads:
        y = d.conv(x, 8, 12, strides=[2, 2])
        starts, ends, axes, steps = ([0, 0], [9, 9], [2, 3], [2, 2])
        x = d.add("Slice", x, *(d.constant(part, kind="int64") for part in (starts, ends, axes, steps)))
        x = d.add("Pad", x, d.constant([0, 2, 0, 0, 0, 2, 0, 0], kind="int64"))
    else:
        y = d.conv(x, 8, 8)
    x = d.add("Relu", d.add("Add", y, x))
    x = d.add("Flatten", d.add("GlobalAveragePool", x))
    d.add("Gemm", x, d.weight(5, 12 if pads else 8), d.weight(5), transB=1, made="y")
    return d.output("y").net()


def placed(net: Net) -> Placement:
    return place(net, engine("onnxruntime"))


@pytest.mark.parametrize("pads", [False, True])
def test_the_function_stays_and_channels_of_a_stream_are_divided_alike(pads: bool) -> None:
    net = stream(pads=pads)
    made = balanced(net, placed(net), FEEDS, threads=1)
    for feeds in FEEDS:
        wanted, got = run(net, feeds)["y"], run(made, feeds)["y"]
        assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()
    names = [name for name in placed(net).activations if name != "x"]
    before, after = (channel_widths(each, FEEDS, names, threads=1) for each in (net, made))
    evener = [after[name].mean() / after[name].max() - before[name].mean() / before[name].max() for name in names]
    assert min(evener) > -0.02
    assert max(evener) > 0.15
    known = channels_of(net)
    first, *_ = [known.of(name) for name in names if known.of(name) is not None]
    sums = [node.outputs[0] for node in net.nodes if node.op_type == "Add"]
    tied = known.of(sums[-1])
    assert tied is not None
    np.testing.assert_array_equal(tied[2:10] if pads else tied, first)
    assert len(set(tied.tolist())) == len(tied)


def test_no_value_becomes_wider_and_no_noise_of_a_channel_grows() -> None:
    """A channel's noise is the step, that of the widest channel, times what the channel is multiplied by after."""
    net = stream(pads=True)
    placement, known = placed(net), channels_of(net)
    names = [name for name in placement.activations if known.of(name) is not None]
    widths = channel_widths(net, FEEDS, names, threads=1)
    factors = shares(known, placement, widths)
    better = 0.0
    for name, width in widths.items():
        ties = known.of(name)
        assert ties is not None
        step = (width / factors[ties]).max()
        assert step <= width.max() * (1 + 1e-9)
        noise = step * factors[ties] / width.max()
        assert noise.max() <= 1 + 1e-9
        better = max(better, 1 - float(np.square(noise).mean()))
    assert better > 0.3


def test_nets_on_integers_gain_by_it() -> None:
    """In what differs from item to item; means are `corrected_biases`' work."""
    feeds = [{"x": np.random.default_rng(seed).standard_normal((64, 3, 8, 8)).astype(np.float32)} for seed in (1, 2)]
    gains = []
    for seed in range(8):
        net = stream(seed=seed)
        even = balanced(net, placed(net), feeds, threads=1)
        wanted, plain, better = (
            run(each, feeds[0])["y"] for each in (net, quantized(net, feeds).net, quantized(even, feeds).net)
        )
        wanted, plain, better = (each - each.mean(axis=0) for each in (wanted, plain, better))
        gains.append(sqnr(wanted, better) - sqnr(wanted, plain))
    assert np.mean(gains) > 0.25, gains


def sigmoid(d: Drawing, x: str) -> str:
    return d.add("Sigmoid", x)


def product(d: Drawing, x: str) -> str:
    return d.add("Mul", x, d.add("GlobalAveragePool", x))


def returned(d: Drawing, x: str) -> str:
    d.output(x)
    return x


def added_number(d: Drawing, x: str) -> str:
    return d.add("Add", x, d.constant(np.ones((8, 1, 1))))


def clipped(d: Drawing, x: str) -> str:
    return d.add("Clip", x, d.constant(0.0), d.constant(6.0))


def padded_with_ones(d: Drawing, x: str) -> str:
    return d.add("Pad", x, d.constant([0, 0, 1, 1, 0, 0, 1, 1], kind="int64"), d.constant(1.0))


def turned(d: Drawing, x: str) -> str:
    return d.add("Transpose", x, perm=[0, 1, 3, 2])


def by_a_computed_weight(d: Drawing, x: str) -> str:
    return d.add("MatMul", x, d.add("Transpose", x, perm=[0, 1, 3, 2]))


@pytest.mark.parametrize(
    "kind",
    [sigmoid, product, returned, added_number, clipped, padded_with_ones, turned, by_a_computed_weight],
)
def test_what_a_factor_does_not_pass_through_fixes_it(kind: Callable[[Drawing, str], str]) -> None:
    d = Drawing(5)
    x = d.conv(d.input("x", ["b", 3, 8, 8]), 3, 8, made="first")
    uneven(d, 8)
    d.add("Conv", kind(d, x), d.weight(4, 8, 1, 1), d.weight(4), made="y")
    net = d.output("y").net()
    ties = channels_of(net).of("first")
    assert ties is not None
    assert not ties.any()
    assert balanced(net, placed(net), FEEDS, threads=1).to_bytes() == net.to_bytes()


def test_a_weight_with_two_readers_fixes_what_they_make() -> None:
    d = Drawing(6)
    x, weight = d.input("x", ["b", 3, 8, 8]), d.weight(8, 3, 1, 1)
    y = d.add("Add", d.add("Conv", x, weight), d.add("Relu", d.add("Conv", x, weight)))
    d.add("Conv", y, d.weight(4, 8, 1, 1), made="y")
    net = d.output("y").net()
    assert all(channels_of(net).of(node.outputs[0]) is None for node in list(net.nodes)[:2])
    assert balanced(net, placed(net), FEEDS, threads=1).to_bytes() == net.to_bytes()


def test_channels_that_are_never_met_keep_a_factor_of_one() -> None:
    d = Drawing(7)
    x = d.conv(d.input("x", ["b", 3, 8, 8]), 3, 8)
    name = next(name for name in d.constants if d.constants[name].ndim > 1)
    d.constants[name][2] = 0
    d.constants[next(name for name in d.constants if d.constants[name].ndim == 1)][2] = 0
    d.add("Conv", d.add("Relu", x), d.weight(4, 8, 1, 1), made="y")
    net = d.output("y").net()
    placement, known = placed(net), channels_of(net)
    names = [name for name in placement.activations if name != "x"]
    factors = shares(known, placement, channel_widths(net, FEEDS, names, threads=1))
    ties = known.of(names[0])
    assert ties is not None
    assert factors[ties][2] == 1
    assert ((factors >= 1 / 16) & (factors <= 1)).all()


@each_net()
def test_random_nets_keep_their_function(made: tuple[Drawing, list[int]]) -> None:
    d, shape = made
    net = simplified(d.net())
    feeds = {"x": images(4, *shape, seed=7)[0]}
    before = net.to_bytes()
    even = balanced(net, placed(net), [feeds], threads=1)
    assert net.to_bytes() == before
    for name, wanted in run(net, feeds).items():
        got = run(even, feeds)[name]
        assert np.abs(got - wanted).max(initial=0) <= 3e-5 * max(float(np.abs(wanted).max(initial=0)), 1e-3)

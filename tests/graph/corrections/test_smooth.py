from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from tersor.graph.corrections.smooth import Half, Smoothing, Stream, sampled, smooth, smoothed, smoothing, streams
from tersor.graph.net import Net, constant
from tersor.graph.placement.engines import engine
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import Placement
from tersor.graph.scheme import Scheme
from tersor.graph.sessions import read_batches
from tersor.graph.simplify import simplified

from ..conftest import Drawing, images, operators, quantized, resnet, run, sqnr

pytest.importorskip("torch", reason="rounding methods are of torch: pip install 'tersor[torch]'")

SCHEME = Scheme(8, signed=False, symmetric=False)


def block(*, residual: bool) -> Net:
    """A norm with outliers in two channels, what reads it, a Gelu, what reads that, and maybe a sum around them."""
    d = Drawing(13, opset=20)
    gain = np.ones(16)
    gain[[3, 9]] = [60, 25]
    x = d.add("LayerNormalization", d.input("x", ["b", 5, 16]), d.constant(gain), d.weight(16), axis=-1, made="normed")
    y = d.add("Add", d.add("MatMul", x, d.weight(16, 32), name="up"), d.weight(32))
    z = d.add("MatMul", x, d.weight(16, 32), name="gate")
    y = d.add("MatMul", d.add("Mul", d.add("Gelu", y, made="gelu"), z, made="gated"), d.weight(32, 16), name="down")
    if residual:
        y = d.add("Add", y, x)
    return simplified(d.output(d.add("Add", y, d.weight(16), made="y")).net())


def placed(net: Net) -> Placement:
    return place(net, engine("onnxruntime"))


def off(net: Net, made: Net, batches: Iterable[Any]) -> float:
    pairs = [(run(net, feeds)["y"], run(made, feeds)["y"]) for feeds in batches]
    return max(float(np.abs(one - other).max() / np.abs(one).max()) for one, other in pairs)


@pytest.mark.parametrize("residual", [False, True])
def test_the_function_stays_and_what_was_hard_to_round_is_not(residual: bool) -> None:
    net = block(residual=residual)
    data = images(4, 5, 16)
    batches = list(read_batches(net, data))
    found = smooth(net, placed(net), batches, threads=1)
    assert off(net, found.net, batches) < 1e-5
    stream, one = next((stream, one) for stream, one in found.found.items() if stream.value == "normed")
    assert stream.nodes == ("up", "gate")
    assert one.factors is not None
    assert one.error < 0.4 * one.plain
    assert one.factors.argmax() == 3
    plain, better = (quantized(net, data, smooth=smooth, products=False) for smooth in (False, True))
    for feeds in [*batches, *read_batches(net, images(40, 5, 16, seed=9, count=1))]:  # the last is of rows not seen
        wanted = run(net, feeds)["y"]
        assert sqnr(wanted, run(better.net, feeds)["y"]) > sqnr(wanted, run(plain.net, feeds)["y"]) + 1.5


def test_factors_go_into_a_norm_that_nobody_else_reads_and_into_a_mul_otherwise() -> None:
    factors = np.linspace(0.5, 2, 16).astype(np.float32)
    found = {Stream("normed", ("up", "gate")): Smoothing(factors, 0.5, 0.0, 0.0)}
    batches = list(read_batches(block(residual=True), images(4, 5, 16)))
    for residual, more in ((False, 0), (True, 1)):
        net = block(residual=residual)
        made, renamed = smoothed(net, found)
        assert operators(made).get("Mul", 0) == operators(net).get("Mul", 0) + more
        assert renamed == ({"normed": "normed_smoothed"} if residual else {})
        assert off(net, made, batches) < 1e-5
        weight = constant(next(node for node in made.nodes if node.name == "up").inputs[1])
        before = constant(next(node for node in net.nodes if node.name == "up").inputs[1])
        assert weight is not None
        assert before is not None
        np.testing.assert_allclose(weight, before * factors[:, None], rtol=1e-6)


def test_columns_that_are_alike_are_left_alone() -> None:
    random = np.random.default_rng(3)
    rows = random.uniform(-1, 1, (64, 8)).astype(np.float32)
    matrix = random.uniform(-1, 1, (12, 8)).astype(np.float32)
    half = Half(rows, np.stack([rows.min(axis=0), rows.max(axis=0)]))
    found = smoothing((half, half), [matrix], SCHEME)
    assert found.factors is None
    assert found.error == found.plain


def test_errors_are_measured_on_what_is_rounded() -> None:
    """By a derivation of its own: codes as QuantizeLinear makes them, in float64."""
    random = np.random.default_rng(4)
    parts = random.standard_normal((2, 50, 6)).astype(np.float32)
    matrix = random.standard_normal((3, 6)).astype(np.float32)
    first, second = (Half(rows, np.stack([rows.min(axis=0), rows.max(axis=0)])) for rows in parts)
    found = smoothing((first, second), [matrix[:2], matrix[2:]], SCHEME)
    error = energy = 0.0
    for ends, rows in ((first.extremes, second.rows), (second.extremes, first.rows)):
        low, high = float(ends.min()), float(ends.max())
        step = (high - low) / 255
        zero = round(-low / step)
        inputs = (np.clip(np.rint(rows / step) + zero, 0, 255) - zero) * step
        scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
        made = inputs @ (np.rint(matrix / scale) * scale).T
        wanted = rows.astype(np.float64) @ matrix.T
        error += np.square(made - wanted).sum()
        energy += np.square(wanted).sum()
    assert found.plain == pytest.approx(error / energy, rel=1e-3)


def test_columns_that_would_all_be_cut_off_on_other_data_are_left_alone() -> None:
    """Long tails in every column: divided, each of them goes beyond a range that knows other rows."""
    random = np.random.default_rng(6)
    rows = random.lognormal(sigma=1.5, size=(80, 48)).astype(np.float32) * np.geomspace(0.2, 1, 48, dtype=np.float32)
    matrix = random.standard_normal((10, 48)).astype(np.float32)
    first, second = (Half(part, np.stack([part.min(axis=0), part.max(axis=0)])) for part in np.split(rows, 2))
    whole = Half(rows, np.stack([rows.min(axis=0), rows.max(axis=0)]))
    assert smoothing((whole, whole), [matrix], SCHEME).factors is not None
    assert smoothing((first, second), [matrix], SCHEME).factors is None


def test_codes_that_pass_from_operator_to_operator_are_not_taken_apart() -> None:
    net = simplified(resnet().net())
    assert not list(streams(net, placed(net)))
    assert not smooth(net, placed(net), list(read_batches(net, images(2, 3, 16, 16))), threads=1).ranges


@pytest.mark.parametrize("count", [1, 3])
def test_rows_come_from_all_batches_and_extremes_from_all_rows(count: int) -> None:
    net = block(residual=False)
    batches = list(read_batches(net, images(4, 5, 16, count=count)))
    halves = sampled(net, batches, ["gelu"], rows=6, threads=1)["gelu"]
    every = [run(net, feeds, watched=["gelu"])["gelu"].reshape(-1, 32) for feeds in batches]
    if count == 1:
        wholes = np.array_split(every[0], 2)
        rows = [half.rows for half in halves]
    else:
        wholes = [np.concatenate(every[::2]), every[1]]
        rows = [half.rows[:2] for half in halves]
        assert np.abs(every[2] - halves[0].rows[2:, None]).max(axis=2).min(axis=1).max() < 1e-5
    assert sum(len(half.rows) for half in halves) == 6
    for whole, some, half in zip(wholes, rows, halves, strict=True):
        assert all((np.abs(whole - row).max(axis=1) < 1e-5).any() for row in some)
        np.testing.assert_allclose(half.extremes, [whole.min(axis=0), whole.max(axis=0)], atol=1e-5)


def test_a_single_row_is_both_halves() -> None:
    d = Drawing(3, opset=20)
    net = simplified(
        d.output(d.add("MatMul", d.add("Gelu", d.input("x", ["b", 8]), made="gelu"), d.weight(8, 4))).net()
    )
    (row,) = images(1, 8, count=1)
    one, other = sampled(net, list(read_batches(net, [row])), ["gelu"], threads=1)["gelu"]
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.extremes, np.repeat(one.rows, 2, axis=0))

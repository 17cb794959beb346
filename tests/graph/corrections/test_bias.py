from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tersor.graph.corrections.bias import bias_of, corrected_biases
from tersor.graph.corrections.rounding import round_with_statistics
from tersor.graph.corrections.statistics import gather
from tersor.graph.net import Net
from tersor.graph.placement.engines import engine
from tersor.graph.placement.placing import place
from tersor.graph.scheme import Precision
from tersor.graph.sessions import read_batches
from tersor.graph.simplify import simplified
from tersor.graph.writing.qdq import with_quantizers

from ..conftest import Drawing, images, run

pytest.importorskip("torch", reason="rounding methods are of torch: pip install 'tersor[torch]'")


def layer(operator: str, *, bias: bool) -> tuple[Net, list[Any]]:
    d = Drawing(8)
    biases = [d.constant(np.linspace(-1, 1, 6))] if bias else []
    if operator == "Conv":
        d.add("Conv", d.input("x", ["b", 4, 7, 7]), d.weight(6, 2, 3, 3), *biases, group=2, pads=[1] * 4, made="y")
    elif operator == "ConvTranspose":
        d.add(operator, d.input("x", ["b", 4, 7, 7]), d.weight(4, 6, 3, 3), *biases, strides=[2, 2], made="y")
    elif operator == "Gemm":
        d.add(operator, d.input("x", ["b", 4]), d.weight(4, 6), *biases, made="y")
    else:
        y = d.add(operator, d.input("x", ["b", 5, 4]), d.weight(4, 6), **({} if bias else {"made": "y"}))
        if bias:
            d.add("Add", *biases, y, made="y")
    shape = {"Gemm": (9, 4), "MatMul": (3, 5, 4)}.get(operator, (3, 4, 7, 7))
    return d.output("y").net(), [np.abs(batch) for batch in images(*shape)]


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_error_of_every_channel_goes(operator: str, bias: bool) -> None:
    net, data = layer(operator, bias=bias)
    net = simplified(net)
    batches = list(read_batches(net, data))
    placement = place(net, engine("openvino"), Precision(bits=3))
    weights = round_with_statistics(net, placement, "rtn", {})
    known = gather(net, batches, placement.weights, threads=1)
    biases = corrected_biases(net, placement, weights, known)
    if operator == "MatMul" and not bias:
        assert not biases  # there is nothing to put it in
        return
    off = []
    for put in ({}, biases):
        made = with_quantizers(net, _weights_only(placement), {}, weights, put)
        errors = [run(made, feeds)["y"] - run(net, feeds)["y"] for feeds in batches]
        axis = 1 if operator.startswith("Conv") else -1
        means = np.mean([np.moveaxis(error, axis, -1).reshape(-1, 6).mean(axis=0) for error in errors], axis=0)
        off.append(float(np.abs(means).max()))
    assert off[0] > 1e-2
    assert off[1] < 1e-5


def _weights_only(placement: Any) -> Any:
    return replace(placement, sites=tuple(site for site in placement.sites if site.kind == "weight"))


def test_errors_that_come_in_with_the_inputs_go_too() -> None:
    net, data = layer("Conv", bias=True)
    net = simplified(net)
    placement = place(net, engine("openvino"))
    weights = round_with_statistics(net, placement, "rtn", {})
    known = gather(net, list(read_batches(net, data)), placement.weights, threads=1)
    seen = gather(net, list(read_batches(net, [batch + 0.25 for batch in data])), placement.weights, threads=1)
    (node,) = placement.weights
    moved = corrected_biases(net, placement, weights, known, seen)[node]
    rows = weights[node].values.reshape(6, -1).astype(np.float64)
    shift = (seen[node].mean - known[node].mean).astype(np.float64)
    wanted = np.concatenate([rows[3 * group : 3 * group + 3] @ shift[group] for group in range(2)])
    np.testing.assert_allclose(corrected_biases(net, placement, weights, known)[node] - moved, wanted, atol=1e-5)


def test_an_operator_whose_bias_is_computed_or_scaled_is_left_alone() -> None:
    d = Drawing(9)
    x, other = d.input("x", ["b", 4]), d.input("z", [3])
    computed = d.add("Gemm", x, d.weight(4, 3), d.add("Relu", other))
    scaled = d.add("Gemm", x, d.weight(4, 3), d.weight(3), beta=0.5)
    whole = d.add("Gemm", x, d.weight(4, 3), d.weight(1, 3))
    d.output(computed, scaled, whole)
    assert [bias_of(node) for node in d.net().nodes if node.op_type == "Gemm"] == [None, None, None]

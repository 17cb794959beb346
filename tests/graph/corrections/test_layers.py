from __future__ import annotations

import numpy as np
import pytest

from tersor.graph.corrections.layers import decibels, operator_noise
from tersor.graph.sessions import read_batches

from ..conftest import Drawing, images, numbers, quantized, resnet, run, simulated, sqnr

pytest.importorskip("torch", reason="rounding methods are of torch: pip install 'tersor[torch]'")


def test_every_operator_on_integers_has_a_row_in_the_order_of_the_graph() -> None:
    batches = images(2, 3, 16, 16)
    made = quantized(resnet().net(), batches)
    found = operator_noise(made, list(read_batches(made.source, batches)), threads=1)
    assert [row.node for row in found] == [n.name for n in made.source.nodes if n.name in made.placement.integer]
    assert {row.operator for row in found} == {"Conv", "Add", "GlobalAveragePool", "Gemm"}
    assert [row.weight_db is None for row in found] == [row.operator in ("Add", "GlobalAveragePool") for row in found]
    assert all(25 < row.output_db < 80 for row in found)


def test_the_noise_of_a_weight_and_of_what_it_makes_are_those_of_the_definition() -> None:
    d = Drawing(14)
    d.output(d.conv(d.add("Relu", d.conv(d.input("x", ["b", 3, 8, 8]), 3, 4, made="one")), 4, 4, made="two"))
    data = images(2, 3, 8, 8, count=1)
    made = quantized(d.net(), data, bits=4)
    first, second = operator_noise(made, list(read_batches(made.source, data)), threads=1)
    node = next(made.source.nodes)
    weight = numbers(node.inputs[1])
    assert first.weight_db == pytest.approx(sqnr(weight, made.weights[str(node.name)].values))
    wanted, found = run(made.source, {"x": data[0]})["two"], simulated(made, {"x": data[0]})["two"]
    assert second.output_db == pytest.approx(sqnr(wanted, found), abs=0.01)
    assert second.output_db < first.output_db


def test_nothing_lost_is_infinite_and_noise_alone_is_minus_that() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(0.0, 0.0) == np.inf == decibels(1.0, 0.0)
    assert decibels(0.0, 1.0) == -np.inf

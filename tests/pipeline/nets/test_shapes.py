"""Nets whose inputs are more, or less, than one batch of free size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.graph.conftest import Drawing, images, run, sqnr

from tersor.graph.net import Net
from tersor.pipeline.nets import quantizing
from tersor.pipeline.nets.quantizing import NetHow, quantize_network


def fixed() -> tuple[Net, Any]:
    """A batch of four, whatever the caller has."""
    d = Drawing()
    d.add("Gemm", d.input("x", [4, 16]), d.weight(16, 8), made="y")
    return d.output("y").net(), images(4, 16)


def recurrent() -> tuple[Net, Any]:
    """A state of [layers, batch, size] beside the input."""
    d = Drawing()
    made = d.add("Gemm", d.input("x", ["n", 16]), d.weight(16, 8))
    layer = d.add("Gather", d.input("state", [2, "n", 8]), d.constant(1, kind="int64"), axis=0)
    d.add("Add", made, layer, made="y")
    return d.output("y").net(), [{"x": x, "state": images(2, 4, 8)[0]} for x in images(4, 16)]


def tempered() -> tuple[Net, Any]:
    """A number before the input, which stands for no item."""
    d = Drawing()
    number = d.input("temperature", [])
    d.add("Div", d.add("Gemm", d.input("x", ["n", 16]), d.weight(16, 8)), number, made="y")
    return d.output("y").net(), [{"x": x, "temperature": 2.0} for x in images(4, 16)]


def test_a_number_may_stand_beside_a_batch() -> None:
    net, batches = tempered()
    result = quantize_network(net, "int8", NetHow(batches, threads=1))
    assert [race.settings["batch"] for race in result.card.benchmarks] == [1]
    assert result.card.plan.recipe.calibration == "list: 16 items in 4 batches"
    wanted = run(net, {"x": batches[0]["x"], "temperature": np.asarray(2.0, np.float32)})["y"]
    assert sqnr(wanted, result(**batches[0])) > 30


@pytest.mark.parametrize("make", [fixed, recurrent])
def test_a_batch_that_cannot_be_parted_is_measured_whole(make: Any) -> None:
    net, batches = make()
    result = quantize_network(net, "int8", NetHow(batches, threads=1))
    assert [race.settings["batch"] for race in result.card.benchmarks] == [4]


def test_what_nobody_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "race_nets", None)
    net, batches = fixed()
    assert quantize_network(net, "int8", NetHow(batches, threads=1, bench=False)).card.benchmarks == ()

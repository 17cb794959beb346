from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.graph.corrections.patches import columns_of, has_rows, input_rows
from tersor.graph.net import constant
from tersor.graph.placement.sites import weight_axis
from tersor.graph.weights import as_matrix

from ..conftest import Drawing, run


def outputs(d: Drawing, x: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return what an operator makes by ONNX Runtime, and by the product of its matrix with its rows."""
    net = d.net()
    node = next(net.nodes)
    assert has_rows(node)
    weight = constant(node.inputs[1])
    assert weight is not None
    rows = input_rows(node, x)
    assert rows.shape[2] == columns_of(node)
    matrix = as_matrix(weight, weight_axis(node)).reshape(len(rows), -1, rows.shape[2])
    products = np.einsum("gpc,goc->pgo", rows.astype(np.float64), matrix).reshape(rows.shape[1], -1)
    return np.moveaxis(run(net, {"x": x})["y"], 1, -1), products


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"strides": [2, 3]},
    {"dilations": [2, 1], "pads": [2, 0, 1, 3]},
    {"group": 2},
    {"group": 4},
    {"pads": [0, 0, 0, 0], "auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
]


@pytest.mark.parametrize("more", CONVOLUTIONS)
def test_rows_times_the_matrix_are_what_onnxruntime_makes_of_a_convolution(more: dict[str, Any]) -> None:
    d = Drawing(5)
    d.input("x", [2, 4, 9, 11])
    parts = {"pads": [1, 1, 1, 1], **more}
    if "auto_pad" in more:
        del parts["pads"]
    d.add("Conv", "x", d.weight(8, 4 // more.get("group", 1), 3, 3), made="y", **parts)
    d.output("y")
    x = np.random.default_rng(6).standard_normal((2, 4, 9, 11)).astype(np.float32)
    made, products = outputs(d, x)
    np.testing.assert_allclose(products.reshape(made.shape), made, atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [3, 2], "pads": [0, 1, 2, 0], "output_padding": [1, 0]},
        {"dilations": [2, 2], "strides": [2, 1]},
        {"pads": [2, 2, 2, 2]},
    ],
)
def test_rows_times_the_matrix_are_what_onnxruntime_makes_of_a_transposed_one(more: dict[str, Any]) -> None:
    d = Drawing(5)
    d.input("x", [2, 4, 5, 6])
    d.add("ConvTranspose", "x", d.weight(4, 7, 3, 3), made="y", **more)
    d.output("y")
    x = np.random.default_rng(6).standard_normal((2, 4, 5, 6)).astype(np.float32)
    made, products = outputs(d, x)
    np.testing.assert_allclose(products.reshape(made.shape), made, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_rows_are_taken_in_any_number_of_dimensions(dims: int) -> None:
    d = Drawing(5)
    shape = [2, 3, *[6, 5, 7][:dims]]
    d.input("x", shape)
    d.add("Conv", "x", d.weight(4, 3, *[3] * dims), made="y", pads=[1] * 2 * dims, strides=[2] * dims)
    d.output("y")
    x = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    made, products = outputs(d, x)
    np.testing.assert_allclose(products.reshape(made.shape), made, atol=1e-5)


@pytest.mark.parametrize(("operator", "more"), [("Gemm", {"transB": 1}), ("Gemm", {}), ("MatMul", {})])
def test_rows_of_a_linear_layer_are_its_inputs(operator: str, more: dict[str, Any]) -> None:
    d = Drawing(5)
    d.input("x", [6, 4])
    d.add(operator, "x", d.weight(3, 4) if more else d.weight(4, 3), made="y", **more)
    d.output("y")
    x = np.random.default_rng(6).standard_normal((6, 4)).astype(np.float32)
    made, products = outputs(d, x)
    np.testing.assert_allclose(products, made, atol=1e-5)


def test_a_limit_takes_some_of_the_same_rows_from_everywhere() -> None:
    d = Drawing(5)
    d.input("x", [3, 2, 8, 8])
    node = next(d.output(d.conv("x", 2, 3)).net().nodes)
    x = np.random.default_rng(6).standard_normal((3, 2, 8, 8)).astype(np.float32)
    rows, some = input_rows(node, x)[0], input_rows(node, x, 12)[0]
    assert some.shape == (12, 18)
    places = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in some]
    assert places == sorted(set(places))
    assert {place // 64 for place in places} == {0, 1, 2}
    np.testing.assert_array_equal(input_rows(node, x, 1000)[0], rows)


def test_what_is_no_product_of_matrices_has_no_rows() -> None:
    d = Drawing(5)
    x = d.input("x", [2, 4, 6])
    y = d.add("MatMul", x, d.weight(2, 6, 3))
    d.output(d.add("Relu", y))
    assert [has_rows(node) for node in d.net().nodes] == [False, False]

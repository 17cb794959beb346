"""Every operator computes what ONNX Runtime computes, whether its inputs are given, constant or known ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import UnsupportedError
from tersor.graph.training.module import to_torch
from tersor.graph.training.ops.table import OPS

from .cases import CASES, Array, Case
from .conftest import ir, one_operator, onnx, run_onnx, run_torch, torch

EPS = float(np.finfo(np.float32).eps)
SMOOTH = 1e-5
"""Relative error of functions that libraries approximate each in its way."""


def bound(case: Case, model: Any, feeds: dict[str, Array], wanted: Array) -> Array:
    """Return how far two orders of the same sums in float32 may be apart: terms · eps · Σ|a||b|, twice."""
    if not case.terms:
        return np.asarray(SMOOTH * max(float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)), 1e-3))
    sizes = {name: np.abs(value) if value.dtype.kind == "f" else value for name, value in feeds.items()}
    return 2 * (case.terms + 2) * EPS * np.asarray(run_onnx(model, sizes)[0], np.float64) + 1e-30


def check(case: Case, constant: int) -> None:
    model = one_operator(
        case.operator, case.inputs, case.attributes, opset=case.opset, outputs=case.outputs, constant=constant
    )
    free = one_operator(case.operator, case.inputs, case.attributes, opset=case.opset, outputs=case.outputs)
    feeds = {f"i{place}": value for place, value in enumerate(case.inputs) if value is not None}
    given = {name: value for name, value in feeds.items() if int(name[1:]) < constant}
    wanted = run_onnx(model, given)
    module = to_torch(ir.from_proto(model), trained=None if constant else ()).eval()
    found = run_torch(module, given)
    if not constant and not OPS[case.operator].random:
        assert {node.op for node in module.graph.nodes} <= {"get_attr", "output"}, "not computed ahead"
    assert len(found) == len(wanted) == case.outputs
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        if theirs.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs)
            continue
        assert ours.dtype == theirs.dtype
        off = np.abs(ours.astype(np.float64) - theirs)
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        allowed = bound(case, free, feeds, theirs)
        assert (same | (off <= allowed)).all(), f"{np.nanmax(off)} off; {np.max(allowed)} allowed"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_agrees_with_onnx_runtime_on_given_inputs(case: Case) -> None:
    check(case, len(case.inputs))


@pytest.mark.parametrize("case", [case for case in CASES if len(case.inputs) > 1], ids=str)
def test_an_operator_agrees_with_onnx_runtime_on_constants(case: Case) -> None:
    check(case, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_agrees_with_onnx_runtime_when_all_is_known(case: Case) -> None:
    check(case, 0)


def test_every_operator_of_the_table_is_tested() -> None:
    assert {case.operator for case in CASES} == set(OPS)


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_codes_of_four_bits_are_read_and_made(kind: str) -> None:
    types = onnx.TensorProto
    element = getattr(types, kind)
    x = np.array([[-9.0, -0.5, 0.5, 1.5, 40.0, 3.2]], np.float32)
    zero = onnx.helper.make_tensor("zero", element, [], [2])
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["z"]),
    ]
    codes = onnx.helper.make_tensor("codes", element, [4], [0, 7, 5, 1])
    scale = onnx.numpy_helper.from_array(np.float32(0.5), "scale")
    info = onnx.helper.make_tensor_value_info
    outputs = [info("y", types.FLOAT, [1, 6]), info("z", types.FLOAT, [4])]
    graph = onnx.helper.make_graph(nodes, "four", [info("x", types.FLOAT, [1, 6])], outputs, [zero, scale, codes])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    found = run_torch(to_torch(ir.from_proto(model)), {"x": x})
    for ours, theirs in zip(found, run_onnx(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_operator_that_is_not_in_the_table_is_named() -> None:
    model = ir.from_proto(one_operator("Hardmax", [np.zeros((2, 3), np.float32)]))
    with pytest.raises(UnsupportedError, match=r"'the_node': Hardmax has no row"):
        to_torch(model)


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    proto = one_operator("Relu", [np.zeros((2, 3), np.float32)])
    proto.graph.node[0].domain = "com.example"
    with pytest.raises(UnsupportedError, match=r"com\.example\.Relu has no row"):
        to_torch(ir.from_proto(proto))


def test_a_way_of_an_operator_that_is_not_in_the_table_is_named() -> None:
    model = one_operator(
        "Resize", [np.zeros((1, 1, 4, 4), np.float32), None, np.ones(4, np.float32)], {"mode": "cubic"}
    )
    with pytest.raises(UnsupportedError, match=r"Resize with mode = 'cubic'"):
        to_torch(ir.from_proto(model))


def test_a_second_output_that_is_not_computed_is_refused() -> None:
    model = one_operator("MaxPool", [np.zeros((1, 1, 4, 4), np.float32)], {"kernel_shape": [2, 2]}, outputs=2)
    with pytest.raises(UnsupportedError, match="only the first output of MaxPool"):
        to_torch(ir.from_proto(model))


@pytest.mark.parametrize("opset", [12, 30])
def test_an_opset_that_the_table_does_not_cover_is_refused(opset: int) -> None:
    proto = one_operator("Relu", [np.zeros((2, 3), np.float32)], opset=12)
    proto.opset_import[0].version = opset
    with pytest.raises(UnsupportedError, match=rf"opset {opset}.*13 to 24"):
        to_torch(ir.from_proto(proto))


def test_dropout_drops_in_training_only() -> None:
    model = ir.from_proto(
        one_operator("Dropout", [np.ones((100, 100), np.float32), np.array(0.25, np.float32)], constant=1)
    )
    module = to_torch(model)
    x = torch.ones(100, 100)
    assert torch.equal(module.eval()(x), x)
    torch.manual_seed(0)
    made = module.train()(x)
    assert set(made.unique().tolist()) == {0.0, float(np.float32(1) / np.float32(0.75))}
    assert 0.2 < float((made == 0).float().mean()) < 0.3

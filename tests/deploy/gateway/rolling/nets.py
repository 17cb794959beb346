"""Nets that say the same, and are slow or fail on some inputs: y = 2 x, of rows of three numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SLOW_LAYERS, SLOW_WIDTH = 2000, 512


def _saved(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> Path:
    info, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [info("x", kind, ["n", 3])], [info("y", kind, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def plain(path: Path) -> Path:
    """The control."""
    return _saved(path, [helper.make_node("Add", ["x", "x"], ["y"])], {})


def slow(path: Path) -> Path:
    """The same by way of many large products with a matrix that changes nothing: some tens of milliseconds."""
    nodes = [helper.make_node("Add", ["x", "x"], ["d"]), helper.make_node("MatMul", ["d", "wide"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{n}", "same"], [f"h{n + 1}"]) for n in range(SLOW_LAYERS)]
    nodes += [helper.make_node("MatMul", [f"h{SLOW_LAYERS}", "narrow"], ["y"])]
    wide = np.eye(3, SLOW_WIDTH, dtype=np.float32)
    same = np.eye(SLOW_WIDTH, dtype=np.float32)
    return _saved(path, nodes, {"wide": wide, "same": same, "narrow": np.ascontiguousarray(wide.T)})


def picky(path: Path) -> Path:
    """The same, and an error for a row whose first number is 2 or more: it is taken as a place in a table of two."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["d"]),
        helper.make_node("Slice", ["x", "zero", "one", "axis"], ["first"]),
        helper.make_node("Cast", ["first"], ["place"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("Add", ["d", "nothing"], ["y"]),
    ]
    table = np.zeros(2, np.float32)
    return _saved(path, nodes, {"table": table, "zero": np.array([0]), "one": np.array([1]), "axis": np.array([1])})


def hungry(path: Path) -> Path:
    """The same, by way of as many zeros as the first number of the first row says: memory may not do for them."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["d"]),
        helper.make_node("Slice", ["x", "zeros", "ones", "axes"], ["first"]),
        helper.make_node("Cast", ["first"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "one"], ["count"]),
        helper.make_node("ConstantOfShape", ["count"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["d", "nothing"], ["y"]),
    ]
    constants = {"zeros": np.array([0, 0]), "ones": np.array([1, 1]), "axes": np.array([0, 1]), "one": np.array([1])}
    return _saved(path, nodes, constants)

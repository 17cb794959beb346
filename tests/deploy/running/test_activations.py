"""Activations beyond their quantizers are counted as the graph says, and nothing that is cut off by design."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError
from tersor.deploy.running.activations import opened

onnx = pytest.importorskip("onnx", reason="reads the graph: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="runs it: pip install 'tersor[onnx]'")
SCALE = 0.5


class Emit:
    """Nobody listens."""

    def __call__(self, part: object, payload: bytes, /) -> bool:
        return False

    def is_cancelled(self) -> bool:
        return False


def rounded(path: Path, *, zero: int, kind: Any = np.uint8, shift: float = 0.0) -> Path:
    """Write a net that rounds x, and x + shift again."""
    make, info, to = onnx.helper, onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    nodes = [
        make.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        make.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["plain"]),
        make.make_node("Add", ["x", "shift"], ["moved"]),
        make.make_node("QuantizeLinear", ["moved", "scale", "zero"], ["more"]),
        make.make_node("DequantizeLinear", ["more", "scale", "zero"], ["other"]),
        make.make_node("Add", ["plain", "other"], ["y"]),
    ]
    stored = [to(np.float32(SCALE), "scale"), to(kind(zero), "zero"), to(np.float32(shift), "shift")]
    float32 = onnx.TensorProto.FLOAT
    graph = make.make_graph(nodes, "g", [info("x", float32, ["n", 4])], [info("y", float32, ["n", 4])], stored)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=10), path)
    return path


def counted(path: Path, numbers: list[list[float]]) -> dict[str, list[int]]:
    """What is counted of a request."""
    array = np.array(numbers, np.float32)
    request = {"inputs": [{"name": "x", "dtype": array.dtype.str, "shape": list(array.shape)}], "outputs": None}
    part, _ = opened({"path": str(path)}).run(request, array.tobytes(), Emit())
    assert isinstance(part, dict)
    found: dict[str, list[int]] = part["layers"]
    return found


def test_what_lies_beyond_half_a_step_outside_is_counted_in_each_layer(tmp_path: Path) -> None:
    path = rounded(tmp_path / "net.onnx", zero=-28, kind=np.int8, shift=100.0)
    low, high = (-128 + 28) * SCALE, (127 + 28) * SCALE
    inside, outside = [low, high, low - 0.2, high + 0.2], [low - 0.3, high + 0.3, float("nan"), 0.0]
    found = counted(path, [inside, outside])
    assert found["x"] == [3, 8]
    moved = np.array([inside, outside], np.float32) + 100
    expected = int(moved.size - ((moved >= low - 0.25) & (moved <= high + 0.25)).sum())
    assert found["moved"] == [expected, 8]
    assert expected > 3


def test_what_a_relu_would_cut_off_is_not_counted(tmp_path: Path) -> None:
    assert counted(rounded(tmp_path / "net.onnx", zero=0), [[-1000.0, -1.0, 127.5, 128.0]])["x"] == [1, 4]


def test_a_net_without_stored_ranges_is_refused(tmp_path: Path) -> None:
    make, info, kind = onnx.helper, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", [info("x", kind, [1])], [info("y", kind, [1])])
    made = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=10)
    onnx.save(made, tmp_path / "float.onnx")
    with pytest.raises(FormatError, match="no activation is rounded"):
        opened({"path": str(tmp_path / "float.onnx")})

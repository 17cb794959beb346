"""The yardstick against the definition, written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="runs them: pip install 'tersor[onnx]'")

from tersor.graph.net import Net  # noqa: E402
from tersor.pipeline.nets.mixing.divergence import Yardstick  # noqa: E402

X = np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]], np.float32)


def drawn(weight: Any, *operators: str, shape: Any = ("n", 3)) -> Net:
    """x · weight, and then some functions."""
    make = onnx.helper
    nodes, value = [make.make_node("MatMul", ["x", "w"], ["v0"], name="product")], "v0"
    for place, kind in enumerate(operators, 1):
        nodes.append(make.make_node(kind, [value], [f"v{place}"], name=kind))
        value = f"v{place}"
    graph = make.make_graph(
        nodes,
        "net",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])],
        [make.make_tensor_value_info(value, onnx.TensorProto.FLOAT, list(shape))],
        [onnx.numpy_helper.from_array(np.asarray(weight, np.float32), "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    return Net.parse(model.SerializeToString(), "drawn")


ONE, OTHER = [[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]], [[0.9, 0.1, -1.0], [0.5, 0.1, 0.3]]


def shares(weight: Any) -> list[list[float]]:
    """Softmax, one number at a time."""
    found = []
    for row in X:
        columns = zip(*weight, strict=True)
        scores = [math.exp(sum(float(a) * b for a, b in zip(row, column, strict=True))) for column in columns]
        found.append([score / sum(scores) for score in scores])
    return found


@pytest.mark.parametrize("operators", [(), ("Softmax",)])
def test_of_classes_it_is_the_divergence_of_predictions(operators: tuple[str, ...]) -> None:
    yardstick = Yardstick.open(drawn(ONE, *operators), [{"x": X[:2]}, {"x": X[2:]}], threads=1)
    assert yardstick.items == 3
    wanted = [
        sum(p * math.log(p / q) for p, q in zip(full, other, strict=True))
        for full, other in zip(shares(ONE), shares(OTHER), strict=True)
    ]
    np.testing.assert_allclose(yardstick.divergences(drawn(OTHER, *operators)), wanted, rtol=1e-3)
    assert yardstick.divergence(drawn(ONE, *operators)) == pytest.approx(0.0, abs=1e-9)


def test_of_other_outputs_it_is_half_the_noise_over_the_signal() -> None:
    one, other = ([[column[:1] for column in weight][row] for row in range(2)] for weight in (ONE, OTHER))
    yardstick = Yardstick.open(drawn(one, shape=("n", 1)), [{"x": X}], threads=1)
    ideal, found = X @ np.asarray(one, np.float32), X @ np.asarray(other, np.float32)
    power = float(np.square(ideal).sum()) / len(X)
    wanted = np.square(found - ideal).sum(axis=1) / (2 * power)
    np.testing.assert_allclose(yardstick.divergences(drawn(other, shape=("n", 1))), wanted, rtol=1e-4)

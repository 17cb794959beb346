"""Handwritten digits: a small trained net in float and on integers, and images that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tersor

from ..conftest import Live, onnx
from ..operating.orders import JSON, asked

datasets = pytest.importorskip("sklearn.datasets", reason="has the digits: pip install scikit-learn")
neural_network = pytest.importorskip("sklearn.neural_network", reason="trains a net: pip install scikit-learn")

YAML = """
models:
  digits:
    primary: int8
    fallback: full
    variants:
      int8: {engine: onnxruntime, path: int8.onnx}
      full: {engine: onnxruntime, path: full.onnx}
"""


@dataclass(frozen=True)
class Digits:
    """Files in a folder, and images [n, 64] in 0 … 1 with their classes that the net never saw.

    full.onnx, int8.onnx; calibration.npz of 300 training images; labelled.npz of 400 others, with labels
    """

    folder: Path
    images: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Train it."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = (pixels[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    net = neural_network.MLPClassifier((32,), max_iter=40, random_state=0, learning_rate_init=0.01, tol=1e-2)
    net.fit(x[:700], y[:700])
    make, info, kind = onnx.helper, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weights = {
        f"{name}{number}": values.astype(np.float32)
        for name, rows in (("w", net.coefs_), ("b", net.intercepts_))
        for number, values in enumerate(rows)
    }
    graph = make.make_graph(
        [
            make.make_node("Gemm", ["x", "w0", "b0"], ["hidden"], "first"),
            make.make_node("Relu", ["hidden"], ["active"], "relu"),
            make.make_node("Gemm", ["active", "w1", "b1"], ["y"], "last"),
        ],
        "digits",
        [info("x", kind, ["n", 64])],
        [info("y", kind, ["n", 10])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=10), folder / "full.onnx")
    np.savez(folder / "calibration.npz", x=x[:300])
    np.savez(folder / "labelled.npz", x=x[700:1100], labels=y[700:1100])
    tersor.quantize(folder / "full.onnx", "int8", output=folder / "int8.onnx", calibration=folder / "calibration.npz")
    return Digits(folder, x[1100:], y[1100:])


def classify(gateway: Live, image: np.ndarray[Any, Any], name: str = "") -> tuple[int, str]:
    """Ask for the class of one image [64], under a name; return it, and who gave it."""
    row = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": image.tolist()}
    body = {"inputs": [row], **({"id": name} if name else {})}
    status, told, headers = asked(gateway.address, "POST", "/v2/models/digits/infer", body, JSON)
    assert status == 200, told
    return int(np.argmax(told["outputs"][0]["data"])), headers["x-tersor-variant"]


def tell(gateway: Live, name: str, *, right: bool) -> None:
    """Say whether an answer was right."""
    status, told, _ = asked(gateway.address, "POST", "/v1/feedback", {"id": name, "right": bool(right)}, JSON)
    assert status == 200, told

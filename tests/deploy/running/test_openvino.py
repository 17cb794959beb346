"""A net in OpenVINO answers as the same net in ONNX Runtime, to many threads at once."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import MissingError
from tersor.deploy.running import onnx as runtime
from tersor.deploy.running.messages import Part
from tersor.deploy.running.openvino import engine as openvino
from tersor.deploy.running.worker import RefusedError


class Emit:
    def __call__(self, part: Part, payload: bytes, /) -> bool:
        raise AssertionError("a net answers at once")

    def is_cancelled(self) -> bool:
        return False


def asked(engine: Any, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    request = {"inputs": [{"name": "x", "shape": list(array.shape), "dtype": array.dtype.str}]}
    part, data = engine.run(request, array.tobytes(), Emit())
    (output,) = part["outputs"]
    made: np.ndarray[Any, Any] = np.frombuffer(data, output["dtype"]).reshape(output["shape"])
    return made


def test_it_answers_as_onnx_runtime_does_to_many_threads_at_once(convolution: Path) -> None:
    pytest.importorskip("openvino", reason="runs it: pip install openvino")
    pytest.importorskip("onnxruntime", reason="runs it too: pip install 'tersor[onnx]'")
    here, there = (module.opened({"path": str(convolution), "threads": 1}) for module in (openvino, runtime))
    assert here.facts["inputs"] == there.facts["inputs"]
    assert here.facts["outputs"] == there.facts["outputs"]
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((1 + number % 3, 3, 8, 8), dtype=np.float32) for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda array: asked(here, array), arrays))
    for array, made in zip(arrays, found, strict=True):
        np.testing.assert_allclose(made, asked(there, array), rtol=1e-3, atol=1e-3)
    with pytest.raises(RefusedError, match=r"input x: <f4 \[-1, 3, 8, 8\], got float32 \[1, 4, 8, 8\]"):
        asked(here, np.zeros((1, 4, 8, 8), np.float32))
    with pytest.raises(RefusedError, match="got float64"):
        asked(here, np.zeros((1, 3, 8, 8)))
    with pytest.raises(RefusedError, match=r"input x: .* got nothing"):  # and not with what came last
        here.run({"inputs": []}, b"", Emit())
    with pytest.raises(RefusedError, match="no output z; there are y"):
        here.run({"inputs": [], "outputs": ["z"]}, b"", Emit())


def test_where_it_is_not_installed_the_error_says_how_to_get_it(
    convolution: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match="pip install openvino"):
        openvino.opened({"path": str(convolution)})

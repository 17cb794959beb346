"""A net in OpenVINO, in a process of its own, answers as the same net in ONNX Runtime, to many requests at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from tersor.core.errors import EngineError, MissingError
from tersor.deploy.running.openvino import engine as openvino
from tersor.deploy.running.supervised import Patience, RequestError, Running

PATIENCE = Patience(start=60, silence=60)
Array = np.ndarray[Any, Any]


async def asked(running: Running, arrays: Sequence[Array], outputs: Sequence[str] = ()) -> Array:
    names = ("x",) * len(arrays)
    inputs = [
        {"name": name, "shape": list(one.shape), "dtype": one.dtype.str}
        for name, one in zip(names, arrays, strict=True)
    ]
    request = {"inputs": inputs, "outputs": list(outputs)}
    async for part, data in running.run(request, b"".join(one.tobytes() for one in arrays)):
        (output,) = part["outputs"]
        return np.frombuffer(data, output["dtype"]).reshape(output["shape"])
    raise AssertionError("no answer")


async def refused(running: Running, arrays: Sequence[Array], outputs: Sequence[str] = ()) -> str:
    with pytest.raises(RequestError) as error:
        await asked(running, arrays, outputs)
    return str(error.value)


def test_it_answers_as_onnx_runtime_does_and_takes_nothing_else(convolution: Path) -> None:
    pytest.importorskip("openvino", reason="runs it: pip install openvino")
    pytest.importorskip("onnxruntime", reason="runs it too: pip install 'tersor[onnx]'")
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((1 + number % 3, 3, 8, 8), dtype=np.float32) for number in range(64)]

    async def compared() -> None:
        options = {"path": str(convolution), "threads": 1}
        here, there = (Running(kind, kind, options, PATIENCE) for kind in ("openvino", "onnxruntime"))
        try:
            await asyncio.gather(here.start(), there.start())
            assert here.facts["inputs"] == there.facts["inputs"]
            assert here.facts["outputs"] == there.facts["outputs"]
            found = await asyncio.gather(*(asked(here, [array]) for array in arrays))
            for array, made in zip(arrays, found, strict=True):
                np.testing.assert_allclose(made, await asked(there, [array]), rtol=1e-3, atol=1e-3)
            wrong = np.zeros((1, 4, 8, 8), np.float32)
            assert "input x: <f4 [-1, 3, 8, 8], got float32 [1, 4, 8, 8]" in await refused(here, [wrong])
            assert "got float64" in await refused(here, [np.zeros((1, 3, 8, 8))])
            assert "got nothing" in await refused(here, [])  # and not with what came last
            assert "no output z; there are y" in await refused(here, [], ["z"])
        finally:
            await asyncio.gather(here.close(), there.close())

    asyncio.run(compared())


def test_where_it_is_not_installed_the_error_says_how_to_get_it(
    convolution: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match="pip install openvino"):
        openvino.opened({"path": str(convolution)})


def test_what_it_fails_at_is_a_failure_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = MagicMock()  # of what is not installed everywhere, and fails as it does
    compiled = module.Core.return_value.compile_model.return_value
    compiled.inputs = compiled.outputs = ()
    compiled.create_infer_request.return_value.infer.side_effect = RuntimeError("src/cpu.cpp:1:\n\nno memory\n")
    monkeypatch.setitem(sys.modules, "openvino", module)
    engine = openvino.opened({"path": "net.onnx"})
    with pytest.raises(EngineError, match=r"^no memory$"):
        engine.run({"inputs": []}, b"", MagicMock())

"""Engines in processes: they answer, refuse, die, hang and come back, and nothing is left of them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.deploy.running import worker
from tersor.deploy.running.supervised import Patience, RequestError, Running

onnx = pytest.importorskip("onnx", reason="a small net is an ONNX file: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="runs it: pip install 'tersor[onnx]'")

T = TypeVar("T")
QUICK = Patience(start=30, ping=0.1, silence=1.0, cancel=1.0, backoff=0.05, longest=0.2)
X = {"name": "x", "dtype": "<f4", "shape": [2, 3]}


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that doubles."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "twice",
        [info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [info("y", onnx.TensorProto.FLOAT, ["n", 3])],
    )
    path = tmp_path_factory.mktemp("nets") / "twice.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def played(scene: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await scene()

    return asyncio.run(bounded())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def doubled(engine: Running, values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
    parts = [part async for part in engine.run({"inputs": [{**X, "shape": list(values.shape)}]}, values.tobytes())]
    ((head, data),) = parts
    return np.frombuffer(data, head["outputs"][0]["dtype"]).reshape(head["outputs"][0]["shape"])


def test_many_requests_at_once_each_get_their_answer(doubling: Path) -> None:
    async def scene() -> None:
        async with Running("twice", "onnxruntime", {"path": str(doubling)}, QUICK) as engine:
            await answered(engine)
            pid = engine.pid
        assert pid is not None
        assert not is_alive(pid)
        assert engine.active == 0

    async def answered(engine: Running) -> None:
        assert engine.facts["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        inputs = [np.full((number % 4 + 1, 3), number, np.float32) for number in range(100)]
        made = await asyncio.gather(*[doubled(engine, one) for one in inputs])
        for one, other in zip(inputs, made, strict=True):
            np.testing.assert_array_equal(other, 2 * one)

    played(scene)


def test_a_request_that_is_wrong_is_refused_and_the_engine_lives(doubling: Path) -> None:
    async def scene() -> None:
        async with Running("twice", "onnxruntime", {"path": str(doubling)}, QUICK) as engine:
            with pytest.raises(RequestError, match=r"input x: <f4 \[-1, 3\], got float32 \[1, 4\]") as caught:
                await doubled(engine, np.zeros((1, 4), np.float32))
            assert caught.value.status == 400
            with pytest.raises(RequestError, match="no output z; there are y"):
                [part async for part in engine.run({"inputs": [X], "outputs": ["z"]}, bytes(24))]
            with pytest.raises(EngineError, match="buffer is smaller"):
                [part async for part in engine.run({"inputs": [X]}, b"short")]
            assert (await doubled(engine, np.ones((1, 3), np.float32)) == 2).all()
            assert engine.starts == 1

    played(scene)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_an_engine_that_dies_or_hangs_is_started_again(how: signal.Signals, doubling: Path) -> None:
    async def scene() -> None:
        told: list[str] = []
        options = {"path": str(doubling)}
        async with Running("twice", "onnxruntime", options, QUICK, lambda state, _: told.append(state)) as engine:
            pid = engine.pid
            assert pid is not None
            os.kill(pid, how)
            with pytest.raises(EngineError, match=r"twice: (died of signal 9|gave no sign of life for 1 s)"):
                await doubled(engine, np.ones((1, 3), np.float32))
            await until(lambda: engine.state == "ready" and engine.starts == 2)
            assert (await doubled(engine, np.ones((1, 3), np.float32)) == 2).all()
            assert not is_alive(pid)
            assert told == ["ready", "waiting", "starting", "ready"]

    played(scene)


def test_an_engine_comes_back_once_there_is_room_for_it(
    doubling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with Running("twice", "onnxruntime", {"path": str(doubling)}, QUICK) as engine:
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # as on a full disk: no file can be made
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: engine.state == "waiting")
            with pytest.raises(EngineError, match=r"the engine is (waiting|starting)"):
                await doubled(engine, np.ones((1, 3), np.float32))
            await asyncio.sleep(0.3)  # several tries
            assert engine.starts == 1
            monkeypatch.undo()
            await until(lambda: engine.state == "ready")
            assert (await doubled(engine, np.ones((1, 3), np.float32)) == 2).all()

    played(scene)


def test_what_cannot_be_loaded_is_told_with_the_reason(tmp_path: Path) -> None:
    async def scene() -> None:
        (tmp_path / "bad.onnx").write_bytes(b"no net")
        engine = Running("bad", "onnxruntime", {"path": str(tmp_path / "bad.onnx")}, QUICK)
        with pytest.raises(EngineError, match=r"bad: .*bad.onnx failed"):
            await engine.start()
        assert engine.pid is None
        assert engine.state == "closed"

    played(scene)


def test_a_process_that_ends_while_loading_is_told_with_its_last_words(tmp_path: Path) -> None:
    async def scene() -> None:
        engine = Running("odd", "no such engine", {"path": ""}, QUICK)
        with pytest.raises(EngineError, match=r"odd: ended with 1: KeyError: 'no such engine'|odd: KeyError"):
            await engine.start()

    played(scene)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("is_orphan", [True, False])
def test_a_process_whose_gateway_died_before_it_could_ask_ends_by_itself(doubling: Path, *, is_orphan: bool) -> None:
    ours, theirs = socket.socketpair()
    parent = os.getppid() if is_orphan else os.getpid()
    entry = "from tersor.deploy.running.worker import main; main()"
    words = [str(theirs.fileno()), "onnxruntime", json.dumps({"path": str(doubling)}), str(parent)]
    with ours, subprocess.Popen([sys.executable, "-c", entry, *words], pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(60)
        assert bool(ours.recv(1)) is not is_orphan  # it says that it is ready, or nothing at all
        if is_orphan:
            assert process.wait(timeout=60) == 1
        else:
            ours.shutdown(socket.SHUT_RDWR)
            assert process.wait(timeout=60) == 0


def test_the_table_of_engines_names_modules_that_are_there() -> None:
    for module in worker.KINDS.values():
        assert importlib.util.find_spec(module) is not None

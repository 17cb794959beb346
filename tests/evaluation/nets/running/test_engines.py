from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.evaluation.nets.running.engines import NET_ENGINES, Loaded, Way, installed, ways
from tersor.evaluation.nets.running.race import likeness_db
from tersor.graph.net import Net
from tersor.graph.sessions import Session
from tersor.targets.processor import places, processor

onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")


def way(engine: str) -> Way:
    return ways((engine,), (1,), every_setting=False)[0]


@pytest.mark.parametrize(
    "engine",
    [
        "onnxruntime",
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("openvino") is None, reason="not installed: pip install openvino"
            ),
        ),
        pytest.param("torch", marks=pytest.mark.slow),
    ],
)
def test_every_engine_gives_the_numbers_of_the_graph(convolution: Path, engine: str) -> None:
    reason = installed(engine)
    if reason:
        pytest.skip(reason)
    with Loaded(convolution, way(engine), batch=3, timeout_s=120) as loaded:
        assert loaded.inputs == {"x": [3, 3, 8, 8]}
        assert len(loaded.seconds(4)) == 4
        assert all(took > 0 for took in loaded.seconds(2, "processor"))
        found = loaded.output()
        assert engine in loaded.version
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32)}
    wanted = Session(Net.open(convolution), optimized=False, threads=1).first(feeds)
    assert found.shape == (15,)
    assert (likeness_db(found, wanted.ravel()) or 200.0) > 100


def test_whole_numbers_are_ones_and_free_axes_are_as_long_as_was_said(tmp_path: Path) -> None:
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("Gather", ["table", "ids"], ["y"], name="gather")],
        "net",
        [make.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "t"])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", "t", 2])],
        [onnx.numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "table")],
    )
    path = tmp_path / "ids.onnx"
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    with Loaded(path, way("onnxruntime"), batch=2, length=5) as loaded:
        assert loaded.inputs == {"ids": [2, 5]}
        assert loaded.output().tolist() == [3, 4] * 10


def test_a_file_that_is_no_net_is_refused_and_no_process_is_left(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x01nonsense")
    with pytest.raises(EngineError, match=r"onnxruntime, loading broken\.onnx"):
        Loaded(path, way("onnxruntime"))


def test_closing_ends_the_process(convolution: Path) -> None:
    loaded = Loaded(convolution, way("onnxruntime"))
    pid = loaded.pid
    assert pid is not None
    loaded.close()
    assert loaded.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_that_is_not_there_says_how_to_get_it(convolution: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    assert installed("openvino") == "not installed: pip install openvino"
    with pytest.raises(MissingError, match="openvino: not installed: pip install openvino"):
        Loaded(convolution, way("openvino"))
    with pytest.raises(SchemeError, match="no engine for nets is called 'tflite'"):
        installed("tflite")


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("torch") is not None:
        assert installed("torch") == "needs g++, which is not on the path"


def test_the_usual_way_comes_first_and_every_one_is_different() -> None:
    found = ways(tuple(NET_ENGINES), (1, 2), every_setting=True)
    assert len({str(one) for one in found}) == len(found)
    one = [way for way in found if way.threads == 1]
    assert len(one) == sum(len(row.settings) for row in NET_ENGINES.values())
    assert len(found) - 2 * len(one) == sum(len(row.several) for row in NET_ENGINES.values()) - (places(2) is None)
    assert str(found[0]) == "onnxruntime, 1 threads, layout, spin"


def test_threads_are_not_pinned_where_there_are_more_of_them_than_cores() -> None:
    many = processor().cores + 1
    found = ways(("onnxruntime",), (many,), every_setting=True)
    assert [way for way in found if way.settings.get("pinning")] == []
    assert len(found) == 3


@pytest.mark.skipif(places(2) is None, reason="needs two processors, and a system that tells where threads may run")
def test_each_thread_of_onnx_runtime_stays_on_a_core_of_its_own(convolution: Path) -> None:
    found = places(2)
    assert found is not None
    with Loaded(convolution, Way("onnxruntime", 2, {"layout": True, "spin": True, "pinning": True})) as pinned:
        pinned.seconds(3)
        tasks = Path(f"/proc/{pinned.pid}/task")
        lines = [line for task in tasks.iterdir() for line in (task / "status").read_text().splitlines()]
        reference = pinned.output()
    where = {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")}
    assert {str(number) for number in found} <= where
    with Loaded(convolution, way("onnxruntime")) as free:
        assert (likeness_db(free.output(), reference) or 200.0) > 100

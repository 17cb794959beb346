from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError, FormatError, MissingError, SchemeError, UnsupportedError
from tersor.evaluation.nets.running.choices import Choices, choices_path
from tersor.pipeline.targets import optimize as optimizing
from tersor.pipeline.targets.optimize import Optimized, optimize

pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")


@pytest.fixture
def net(convolution: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(convolution, tmp_path / "net.onnx"))


def quick(path: Path, **options: object) -> Optimized:
    return optimize(path, engines=("onnxruntime",), threads=(1,), rounds=3, **options)  # type: ignore[arg-type]


def test_the_fastest_way_is_chosen_kept_and_remembered(net: Path) -> None:
    found = quick(net)
    tried = found.choice.tried
    assert found.fresh
    every = {(True, True), (False, True)}  # idle threads do not spin where there is one
    assert {(row.settings["layout"], row.settings["spin"]) for row in tried} == every
    assert (tried[0].note, tried[0].best_ms) == ("", found.choice.best_ms)
    assert all(row.note for row in tried[1:])
    again = quick(net)
    assert not again.fresh
    assert again.choice == found.choice
    with again.open() as loaded:
        assert loaded.inputs == {"x": [1, 3, 8, 8]}
        assert np.isfinite(loaded.output()).all()


def test_a_narrow_search_is_not_taken_for_a_wide_one(net: Path) -> None:
    first = quick(net)
    assert first.choice.searched == "engines onnxruntime; threads 1"
    wider = optimize(net, engines=("onnxruntime",), threads=(1, 2), rounds=3)
    assert wider.fresh
    assert {row.threads for row in wider.choice.tried} == {1, 2}
    with pytest.raises(SchemeError, match="nonesuch"):
        optimize(net, engines=("nonesuch",))


def test_another_release_of_an_engine_and_other_bytes_are_measured_anew(net: Path) -> None:
    first = quick(net)
    path = choices_path(net)
    path.write_text(Choices((replace(first.choice, versions={"onnxruntime": "0.1"}),)).to_json())
    assert quick(net).fresh
    net.write_bytes(net.read_bytes() + b"\x72\x00")  # an empty field that protobuf passes over
    assert quick(net).fresh


def test_ways_with_other_results_than_the_first_are_not_taken(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="builds a net")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    noise = make.make_node("RandomNormalLike", ["x"], ["y"], name="noise")  # differs from process to process
    ends = [make.make_tensor_value_info(name, kind, [1, 1000]) for name in "xy"]
    model = make.make_model(
        make.make_graph([noise], "net", ends[:1], ends[1:]), opset_imports=[make.make_opsetid("", 20)], ir_version=10
    )
    path = tmp_path / "noise.onnx"
    path.write_bytes(model.SerializeToString())
    first, *others = quick(path).choice.tried
    assert (first.settings, first.note) == ({"layout": True, "spin": True}, "")
    assert [row.note for row in others] == ["its results differ from the first's"]


def test_threads_of_llama_cpp_are_chosen_for_a_gguf(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="runs a GGUF: pip install 'tersor[llama]'")
    path = Path(shutil.copy(tiny_gguf(), tmp_path / "tiny.gguf"))
    found = optimize(path, threads=(1, 2), rounds=2)
    assert {(row.engine, row.threads) for row in found.choice.tried} == {("llama.cpp", 1), ("llama.cpp", 2)}
    assert found.choice.best_ms == min(row.best_ms or 0 for row in found.choice.tried)
    with pytest.raises(UnsupportedError, match=r"run it in llama\.cpp with"):
        found.open()


@pytest.mark.parametrize(("seconds", "rounds"), [(-1.0, 2), (90.0, 8)])
def test_a_race_of_threads_that_stays_close_ends_in_time(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int
) -> None:
    pytest.importorskip("xllamacpp", reason="runs a GGUF: pip install 'tersor[llama]'")
    path = Path(shutil.copy(tiny_gguf(), tmp_path / "tiny.gguf"))
    monkeypatch.setattr(optimizing, "undecided", lambda blocks: range(len(blocks)))
    monkeypatch.setattr(optimizing, "MORE_S", seconds)
    told: list[str] = []
    optimize(path, threads=(1, 2), rounds=2, progress=lambda what, *_: told.append(what))
    assert len(told) == 2 * (1 + rounds)  # a warm-up comes first


def test_what_cannot_be_done_is_refused(net: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="optimized for cpu, not 'gpu'"):
        optimize(net, target="gpu")
    with pytest.raises(SchemeError, match="must be positive"):
        optimize(net, threads=(0,))
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    with pytest.raises(SchemeError, match="processor time is for nets"):
        optimize(gguf, clock="processor", threads=(1,))
    with pytest.raises(SchemeError, match="batch and length are of the inputs of nets"):
        optimize(gguf, batch=2)
    with pytest.raises(SchemeError, match=r"give threads=\(1,\)"):
        optimize(net, clock="processor", threads=(1, 2))
    with pytest.raises(MissingError, match="no such file"):
        optimize(tmp_path / "none.onnx")
    with pytest.raises(UnsupportedError, match=r"chosen for \.onnx and \.gguf"):
        optimize(Path(__file__))
    with pytest.raises(SchemeError, match="no engine for nets is called 'x'"):
        optimize(net, engines=("x",))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01nonsense")
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        quick(broken)
    assert not choices_path(broken).exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": "tersor.choices/9"}', '{"schema": "tersor.choices/1", "choices": 3}']
)
def test_a_file_that_remembers_something_else_is_refused(net: Path, text: str) -> None:
    choices_path(net).write_text(text)
    with pytest.raises(FormatError, match=r"choices\.json"):
        quick(net)

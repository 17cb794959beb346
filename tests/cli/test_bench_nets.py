from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tersor.core.errors import EngineError, SchemeError
from tersor.evaluation.nets.running.choices import Choice, Choices, choices_path
from tersor.evaluation.nets.running.remembered import fingerprint, releases
from tersor.files.hashing import sha256
from tersor.pipeline.bench import bench
from tersor.targets.processor import processor

from .conftest import Run

pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")

ONE = ("--threads", 1, "--rounds", 6)


def test_a_net_is_timed_beside_itself(run: Run, convolution: Path) -> None:
    done = run("bench", convolution, "--against", convolution, "--batch", 2, *ONE)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[1].startswith("A  net.onnx, onnxruntime ")
    assert "x [2, 3, 8, 8]" in lines[1]
    for start in ("latency best, ms", "items, items/s", "load, ms", "file, MiB"):
        assert any(line.startswith(start) for line in lines), start


def test_engines_are_compared_the_fastest_first(run: Run, convolution: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no compiler: torch.compile, which takes long, is left out with the reason
    done = run("bench", convolution, "--compare", "engines", "--json", *ONE)
    found = done.document["benchmarks"]
    best = [next(m["value"] for m in one["metrics"] if m["name"] == "latency_best_ms") for one in found]
    assert best == sorted(best)
    assert all(one["settings"]["engine"] in one["engine"] for one in found)
    assert any("torch does not run it: torch: needs g++" in note for note in found[0]["notes"])
    shown = run("bench", convolution, "--compare", "engines", *ONE)
    assert any(line.startswith("onnxruntime 1.") for line in shown.out.splitlines())


def test_kernels_stand_beside_the_roof(run: Run, convolution: Path) -> None:
    done = run("bench", convolution, "--roof", *ONE[:2])
    assert done.code == 0, done.err
    assert any(line.split()[1:2] == ["Gemm"] for line in done.out.splitlines())
    assert "all kernels: " in done.out
    document = run("bench", convolution, "--roof", "--json", *ONE[:2]).document
    assert {kernel["operator"] for kernel in document["kernels"]} >= {"Gemm"}
    assert document["machine"]["threads"] == 1
    assert document["engine"] == "onnxruntime, 1 threads, layout, spin"


def test_a_net_runs_as_was_chosen_for_it_unless_something_else_is_said(
    run: Run, convolution: Path, tmp_path: Path
) -> None:
    net = Path(shutil.copy(convolution, tmp_path / "net.onnx"))
    settings = {"layout": False, "spin": True}
    kept = Choice(
        sha256(net), fingerprint(processor()), "onnxruntime", 1, settings, 1, 128, 1.0,
        versions=releases(("onnxruntime",)), date="2026-11-28T14:00:00Z",
    )  # fmt: skip
    choices_path(net).write_text(Choices((kept,)).to_json())

    def used(*options: object) -> tuple[object, bool]:
        found = run("bench", net, "--rounds", 1, "--json", *options).document["benchmarks"][0]
        said = any("as `tersor optimize` chose on 2026-11-28" in note for note in found["notes"])
        assert said == ("chosen" in found["settings"])
        return found["settings"]["layout"], said

    assert used() == (False, True)
    for options in (("--engine", "onnxruntime"), ("--threads", 1), ("--against", net)):
        assert used(*options) == (True, False)
    net.write_bytes(net.read_bytes() + b"\x72\x00")  # an empty field that protobuf passes over
    assert used() == (True, False)


def test_limits_judge_the_ratio(run: Run, convolution: Path) -> None:
    passed = run("bench", convolution, "--against", convolution, "--max-latency-ratio", 1e6, *ONE)
    assert (passed.code, "pass: " in passed.out) == (0, True)
    failed = run("bench", convolution, "--against", convolution, "--max-latency-ratio", 1e-6, *ONE)
    assert (failed.code, "fail: " in failed.out) == (1, True)


def test_what_means_nothing_for_a_net_is_refused(run: Run, convolution: Path, tmp_path: Path) -> None:
    assert "--prompt means nothing for a net" in run("bench", convolution, "--prompt", 5).err
    assert "--rounds means nothing for --roof of a net" in run("bench", convolution, "--roof", *ONE).err
    roof = run("bench", convolution, "--roof", "--max-latency-ratio", 1)
    assert (roof.code, "--max-latency-ratio means nothing for --roof" in roof.err) == (1, True)
    assert "no engine for nets is called 'x'" in run("bench", convolution, "--engine", "x").err
    with pytest.raises(SchemeError, match="min_tokens_per_s is for language models"):
        bench(convolution, min_tokens_per_s=1e12)
    with pytest.raises(SchemeError, match="every engine or one of them"):
        bench(convolution, engine="onnxruntime", compare=True)
    with pytest.raises(SchemeError, match="engines are compared on one net"):
        bench(convolution, against=convolution, compare=True)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01nonsense")
    with pytest.raises(EngineError, match=r"broken\.onnx: onnxruntime"):
        bench(broken, rounds=1)

"""The gate lets a good artefact through, and no broken one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tersor
from tersor import reference_model
from tersor.cli.main import app
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.deploy.gating.record import GateCheck, GateRecord, Outcome
from tersor.deploy.gating.serving import GOLDEN, Bounds, check_serving
from tersor.deploy.registry.registry import Registry
from tersor.files.gguf import GgufFile
from tersor.pipeline.deploy.gate import gate, gate_registered

pytest.importorskip("xllamacpp", reason="runs a GGUF: pip install 'tersor[llama]'")
pytest.importorskip("torch", reason="the baseline runs in it: pip install 'tersor[torch]'")
pytest.importorskip("prometheus_client", reason="counts what is served: pip install 'tersor[serve]'")
MODEL = reference_model.PATH


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "good.gguf"
    tersor.quantize(MODEL, "q4_0", output=path)
    return path


def found(record: GateRecord) -> dict[str, str]:
    return {check.name: check.outcome for check in record.checks}


def changed(source: Path, target: Path, name: str, change: Callable[[bytes, int], bytes]) -> Path:
    """A copy in which the bytes of one tensor are others; without a Card, as from somewhere else."""
    content, file = bytearray(source.read_bytes()), GgufFile(source)
    shape = file.tensors[name].shape
    data = file.read_bytes(name, 0, int(np.prod(shape[:-1]))).tobytes()
    file.close()
    at = content.find(data)
    assert at > 0
    content[at : at + len(data)] = change(data, int(shape[0]))
    target.write_bytes(content)
    return target


def without_scales(data: bytes, rows: int) -> bytes:
    del rows
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 18).copy()
    blocks[:, :2] = 0
    return blocks.tobytes()


def heads_swapped(data: bytes, rows: int) -> bytes:
    matrix = np.frombuffer(data, np.uint8).reshape(rows, -1)
    return np.concatenate([matrix[rows // 2 :], matrix[: rows // 2]]).tobytes()


def other_tokens(source: Path, target: Path) -> Path:
    """A copy in which two tokens have changed places."""
    content = source.read_bytes()
    one, other = (len(word).to_bytes(8, "little") + word for word in (b"import", b"return"))
    assert content.count(one) == content.count(other) == 1
    target.write_bytes(content.replace(one, b"\0" * 14).replace(other, one).replace(b"\0" * 14, other, 1))
    return target


def test_a_good_artefact_passes_with_its_numbers(good: Path) -> None:
    record = gate(good, against=MODEL, windows=5, bounds=Bounds(first_ms=60_000, memory_bytes=1 << 30))
    assert record.outcome == "PASS", record
    assert set(found(record)) >= {"structure", "card", "tokens", "tensors", "serving", "first_ms", "memory", "quality"}
    quality = record.checks[-1]
    assert 0 < quality.numbers["low"] <= quality.numbers["kl_mean"] <= quality.numbers["high"] < 0.05
    assert json.loads(json.dumps(record.to_object()))["outcome"] == "PASS"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "failing"),
    [
        ("blk.1.ffn_down.weight", without_scales, {"tensors"}),
        ("blk.0.attn_q.weight", heads_swapped, {"tensors", "quality"}),
        ("blk.2.attn_v.weight", heads_swapped, {"tensors", "quality"}),
    ],
    ids=["a zeroed scale", "heads of queries swapped", "heads of values swapped"],
)
def test_a_broken_tensor_fails(
    name: str, change: Callable[[bytes, int], bytes], failing: set[str], good: Path, tmp_path: Path
) -> None:
    record = gate(changed(good, tmp_path / "bad.gguf", name, change), against=MODEL, windows=5)
    assert record.outcome == "FAIL"
    assert {check for check, outcome in found(record).items() if outcome == "FAIL"} >= failing


def test_a_wrong_tokenizer_fails(good: Path, tmp_path: Path) -> None:
    record = gate(other_tokens(good, tmp_path / "bad.gguf"), against=MODEL, windows=5)
    assert record.outcome == "FAIL"
    assert found(record)["tokens"] == "FAIL"


def test_what_is_no_model_fails_and_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(200))
    record = gate(tmp_path / "bad.gguf", against=MODEL, windows=5)
    assert record.outcome == "FAIL"
    assert found(record)["serving"] == found(record)["quality"] == "FAIL"


@pytest.mark.slow
def test_bounds_of_time_and_memory_are_kept_to(good: Path) -> None:
    tight = Bounds(first_ms=1e-6, latency_ms=1e-6, slowdown=1e-6, memory_bytes=1000)
    record = gate(good, against=MODEL, windows=5, bounds=tight)
    judged = found(record)
    assert {judged[name] for name in ("first_ms", "latency_ms", "slowdown", "memory")} == {"FAIL"}


def test_times_are_judged_against_full_precision_by_their_intervals(good: Path) -> None:
    def checks(bounds: Bounds, **options: Any) -> dict[str, GateCheck]:
        return {check.name: check for check in check_serving(good, threads=1, bounds=bounds, **options)}

    wide = checks(Bounds(latency_ms=60_000, slowdown=1000), full=good)
    assert (wide["latency_ms"].outcome, wide["slowdown"].outcome) == ("PASS", "PASS")
    numbers = wide["slowdown"].numbers
    assert 0 < numbers["low"] <= numbers["slowdown"] <= numbers["high"]
    assert numbers["full_token_ms"] > 0
    few = checks(Bounds(latency_ms=60_000, slowdown=1000), full=good, prompts=GOLDEN[:1])
    assert (few["latency_ms"].outcome, few["slowdown"].outcome) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert "3 answers are too few" in few["slowdown"].detail


def test_nothing_is_said_of_a_slowdown_where_full_precision_cannot_be_served(good: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(200))
    found = check_serving(good, threads=1, bounds=Bounds(slowdown=2.0), full=tmp_path / "bad.gguf")
    (check,) = [check for check in found if check.name == "slowdown"]
    assert check.outcome == "INCONCLUSIVE"
    assert check.problems


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["PASS"], "PASS"),
        (["PASS", "INCONCLUSIVE"], "INCONCLUSIVE"),
        (["INCONCLUSIVE", "FAIL"], "FAIL"),
        ([], "INCONCLUSIVE"),
    ],
)
def test_one_failure_fails_and_one_doubt_leaves_it_open(outcomes: list[Outcome], expected: Outcome) -> None:
    checks = tuple(GateCheck(f"c{number}", outcome, "") for number, outcome in enumerate(outcomes))
    assert GateRecord("a", "b", {}, checks, {}, "", "").outcome == expected


@pytest.mark.slow
def test_the_exit_code_is_the_verdict(good: Path) -> None:
    words = ["gate", str(good), "--against", str(MODEL), "--windows", "6"]
    assert CliRunner().invoke(app, words).exit_code == 0
    strict = CliRunner().invoke(app, [*words, "--max-kl", "0.0001", "--json"])
    assert strict.exit_code == 1
    assert json.loads(strict.stdout)["outcome"] == "FAIL"
    assert CliRunner().invoke(app, words[:2]).exit_code == 2


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry of `full` and of `small`, whose files only begin like a GGUF."""
    for name in ("full", "small", "other"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + name.encode())
    with Registry.open(tmp_path, mode="create") as opened:
        opened.add_artefact("full", tmp_path / "full.gguf", who="ann")
        opened.add_artefact("small", tmp_path / "small.gguf", who="ann", baseline="full")
    return tmp_path


@pytest.mark.parametrize(("outcome", "kept"), [("PASS", "pass"), ("FAIL", "fail"), ("INCONCLUSIVE", "inconclusive")])
def test_a_registry_keeps_the_verdict_on_these_bytes(outcome: Outcome, kept: str, registry: Path) -> None:
    def judge(path: Path, baseline: Path) -> GateRecord:
        assert (path, baseline) == (registry / "small.gguf", registry / "full.gguf")
        return GateRecord("small", "full", {}, (GateCheck("quality", outcome, ""),), {}, "", "")

    filed = gate_registered(registry / "small.gguf", registry=registry, who="bob", judge=judge)
    assert (filed.label, filed.record.outcome) == ("small:1", outcome)
    with Registry.open(registry) as opened:
        (verdict,) = opened.verdicts("small")
        assert (verdict.outcome, verdict.who, verdict.document["outcome"]) == (kept, "bob", outcome)
        assert (opened.objection("small") is None) == (outcome == "PASS")


def test_a_verdict_that_would_mean_nothing_is_not_kept(registry: Path) -> None:
    def judge(path: Path, baseline: Path) -> GateRecord:
        path.write_bytes(path.read_bytes() + b"!")
        return GateRecord("small", "full", {}, (GateCheck("quality", "PASS", ""),), {}, "", "")

    def asked(name: str, against: str | None = None) -> None:
        other = None if against is None else registry / against
        gate_registered(registry / name, registry=registry, who="bob", judge=judge, against=other)

    with pytest.raises(MissingError, match=r"does not know it; register it first: `tersor registry add other.gguf"):
        asked("other.gguf")
    with pytest.raises(SchemeError, match="full:1 was registered without a baseline"):
        asked("full.gguf")
    with pytest.raises(SchemeError, match=r"small:1 is compared with full:1, and .*small.gguf is not that"):
        asked("small.gguf", "small.gguf")  # of itself, everything is as good
    with pytest.raises(FormatError, match="was changed while it was judged"):
        asked("small.gguf", "full.gguf")
    with Registry.open(registry) as opened:
        assert opened.verdicts("small") == ()

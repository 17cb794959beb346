"""inspect, verify, doctor and demo from the command line."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tersor.pipeline import doctor as doctor_module
from tersor.pipeline.doctor import Diagnosis, Finding
from tersor.targets.profiles.table import PROFILES
from tersor.targets.roofs import measure_roofs

from .conftest import Run


@pytest.fixture
def small(run: Run, model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    assert run("quantize", model, "-o", path, "-f", "q8_0", "--search", "ggml").code == 0
    return path


def test_inspect_shows_a_gguf(run: Run, small: Path) -> None:
    outcome = run("inspect", small)
    assert outcome.code == 0
    for words in ("tiny: GGUF, architecture llama", "q8_0", "tokenizer: gpt2 gpt-2, 300 tokens", "blk.0.attn_q.weight"):
        assert words in outcome.out
    assert "blk.0.attn_q.weight" not in run("inspect", small, "--no-tensors", "--no-metadata").out
    assert "llama.block_count" not in run("inspect", small, "--no-metadata").out


def test_inspect_as_json_adds_up(run: Run, small: Path) -> None:
    found = run("inspect", small, "--json").document
    assert found["weights"] == sum(total["weights"] for total in found["totals"])
    assert found["bytes"] == sum(tensor["nbytes"] for tensor in found["tensors"])
    assert {total["format"] for total in found["totals"]} == {"q8_0", "f32"}
    assert found["metadata"]["tokenizer.ggml.tokens"].startswith("300 items")


def test_verify_passes_a_good_file_and_fails_a_broken_one(run: Run, small: Path, model: Path) -> None:
    pytest.importorskip("xllamacpp", reason="verify runs llama.cpp: pip install 'tersor[llama]'")
    outcome = run("verify", small, "--against", model)
    assert outcome.code == 0, outcome.out
    assert "6 checks passed" in outcome.out
    data = bytearray(small.read_bytes())
    small.write_bytes(data[:-5000])
    outcome = run("verify", small, "--against", model, "--json")
    assert outcome.code == 1
    document = outcome.document
    assert document["passed"] is False
    status = {check["name"]: check["status"] for check in document["checks"]}
    assert status["structure"] == status["card"] == status["running"] == "failed"
    assert status["tokens"] == status["tensors"] == status["logits"] == "skipped"
    assert "truncated" in document["checks"][0]["problems"][0]


def test_verify_fails_what_it_cannot_open_to_compare(run: Run, small: Path, model: Path) -> None:
    pytest.importorskip("xllamacpp", reason="verify runs llama.cpp: pip install 'tersor[llama]'")
    odd = small.rename(small.with_suffix(".bin"))
    outcome = run("verify", odd, "--against", model)
    assert outcome.code == 1
    assert "the file cannot be opened, so nothing was compared" in outcome.out
    assert "1 of 7 checks failed, 4 skipped" in outcome.out


def test_verify_of_nothing_names_it(run: Run, tmp_path: Path) -> None:
    outcome = run("verify", tmp_path / "no.gguf")
    assert outcome.code == 1
    assert "no.gguf: no such file" in outcome.err
    assert "not a file; verify takes a GGUF" in run("verify", tmp_path).err


def test_verify_refuses_more_tokens_than_memory_is_sure_to_hold(run: Run, model: Path) -> None:
    outcome = run("verify", model, "--tokens", "1000000000")
    assert outcome.code == 2
    assert "4096" in outcome.err


def test_doctor_finds_this_installation_healthy(run: Run) -> None:
    outcome = run("doctor", "--json")
    assert outcome.code == 0, outcome.out
    topics = {finding["topic"].split()[0]: finding["state"] for finding in outcome.document["findings"]}
    assert topics["python"] == "ok"
    assert {"kernels", "torch", "xllamacpp", "llama.cpp", "cores", "memory", "processor", "roofs"} <= set(topics)
    assert topics["openvino"] in ("ok", "absent")
    assert outcome.document["profile"] in PROFILES or topics["profile"] == "absent"
    assert outcome.document["roofs"]["read_bytes_per_s"] > 1e7


def test_doctor_tells_the_memory_of_its_container(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    roofs = measure_roofs(1, buffer_bytes=1 << 20)
    monkeypatch.setattr(doctor_module, "measure_roofs", lambda _: roofs)
    monkeypatch.setattr(doctor_module, "machine_bytes", lambda: 4 << 30)
    monkeypatch.setattr(doctor_module, "available_bytes", lambda: 3 << 29)
    assert "4.0 GiB, 1.5 GiB free" in run("doctor").out


def test_doctor_has_a_row_for_whatever_an_extra_brings(run: Run) -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = declared["project"]["optional-dependencies"]
    wanted = {
        f"{re.split('[><=!~;[ ]', requirement, maxsplit=1)[0]} [{extra}]"
        for extra, requirements in extras.items()
        if extra not in ("all", "dev")  # these are made of the others, and of what only tests need
        for requirement in requirements
    }
    found = {row["topic"]: row for row in run("doctor", "--json").document["findings"]}
    assert wanted == {topic for topic in found if topic.endswith("]")}
    for topic in wanted:
        name, extra = topic.removesuffix("]").split(" [")
        try:
            held = version(name)
        except PackageNotFoundError:
            assert found[topic]["state"] == "absent"
            assert found[topic]["remedy"] == f"pip install 'tersor[{extra}]'"
        else:
            assert (found[topic]["state"], found[topic]["text"]) == ("ok", held)


def test_doctor_fails_when_something_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    roofs = measure_roofs(1, buffer_bytes=1 << 20)
    broken = Diagnosis((Finding("llama.cpp", "broken", "it dies", "pip install it"),), None, roofs)
    monkeypatch.setattr(doctor_module, "doctor", lambda: broken)
    outcome = run("doctor")
    assert outcome.code == 1
    assert "it dies" in outcome.out
    assert "→ pip install it" in outcome.out


def test_demo_goes_the_whole_way(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the demo runs llama.cpp: pip install 'tersor[llama]'")
    outcome = run("demo", "-o", tmp_path / "new", "--search", "ggml")
    assert outcome.code == 0, outcome.err
    assert "# reference_model → q4_k_m" in outcome.out
    assert "continues a Python function" in outcome.out
    assert (tmp_path / "new" / "reference-q4_k_m.gguf").is_file()


def test_calibrate_names_a_folder_that_is_not_there(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")
    outcome = run("calibrate", model, "-o", tmp_path / "no" / "saved")
    assert outcome.code == 1
    assert "no: no such folder; create it first" in outcome.err


def test_calibrate_refuses_an_imatrix_that_cannot_be_written_before_it_runs(
    run: Run, model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")
    for place, told in ((tmp_path / "no" / "i.gguf", "no: no such folder"), (model, "is a file of the model itself")):
        outcome = run("calibrate", model, "-o", tmp_path / "saved", "--save-imatrix", place)
        assert (outcome.code, told in outcome.err) == (1, True)
        assert not (tmp_path / "saved").exists()

"""Quantizing with calibration: what is written, what is told, what is refused, what survives a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.calibrate.workspace import workspace_path
from tersor.containers.imatrix import read_imatrix
from tersor.core.card import Card
from tersor.core.errors import FormatError, MissingError, QualityError, SchemeError, TersorError
from tersor.core.tensor import QuantizedTensor
from tersor.files.gguf import GgufFile
from tersor.methods import METHODS, Method, rtn
from tersor.models import Model, load
from tersor.pipeline.calibrated import rewrites, run
from tersor.pipeline.calibrated.quantize import How, importance_from, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.steps.cards import read_card
from tersor.pipeline.verify import verify

pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")

Make = Callable[..., Model]


def how(text: Path, method: str = "gptq", **more: Any) -> How:
    calibration = Calibration(source=text, sequences=24, length=32, chunk=4)
    return How(method=method, calibration=calibration, threads=1, **more)


def quantized(model: Model, output: Path, settings: How, name: str = "q4_0") -> Card:
    card = quantize_calibrated(model, name, output, settings)
    assert card is not None
    return card


@pytest.mark.parametrize(
    "method",
    [
        "rtn",
        "gptq",
        "gptaq",
        "foem",
        "qronos",
        "best",
        "awq",
        "awq+rtn",
        "awq+gptq",
        "hadamard+best",
        "hadamard+awq+gptq",
    ],
)
def test_a_gguf_is_sound_and_is_its_source(method: str, make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    card = quantized(model, tmp_path / "m.gguf", how(text, method, force=True))  # a random model may gain nothing
    checks = {check.name: check for check in verify(tmp_path / "m.gguf", against=model).checks}
    assert [problem for check in checks.values() for problem in check.problems] == []
    assert checks["tensors"].status == "passed"
    assert (checks["tensors"].numbers["tensors_scaled"] > 0) == ("awq" in method)
    assert card.plan.recipe.method == method
    assert card.plan.recipe.calibration.startswith("words.txt: 24 sequences of 32 tokens, sha256 ")
    assert not workspace_path(tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("m.pte", "let it end in .gguf"), ("no/m.gguf", "no such folder"), ("model", "the output must be a file")],
)
def test_an_output_that_cannot_be_is_refused_before_calibration(
    name: str, words: str, make: Make, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir(exist_ok=True)
    with pytest.raises(TersorError, match=re.escape(words)):
        quantized(make(), tmp_path / name, how(text))
    assert not workspace_path(tmp_path / name).exists()


@pytest.mark.parametrize(
    ("method", "count", "proof", "words"),
    [
        ("gptq", 1, True, "words.txt gives 1: give at least 2 (--calibration-sequences), or --no-proof"),
        ("qat", 2, True, "there are 2: give more (--calibration-sequences)"),
        ("qat", 1, False, "there are 1: give more (--calibration-sequences)"),
    ],
)
def test_too_few_sequences_for_what_is_kept_back_are_refused_before_calibration(
    method: str, count: int, *, proof: bool, words: str, make: Make, text: Path, tmp_path: Path
) -> None:
    settings = how(text, method, proof=proof)
    few = dataclasses.replace(settings, calibration=Calibration(source=text, sequences=count, length=32))
    with pytest.raises(SchemeError, match=re.escape(words)):
        quantized(make(), tmp_path / "m.gguf", few)
    assert not workspace_path(tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("count", "proof"), [(2, True), (1, False)])
def test_the_fewest_sequences_that_are_not_refused_are_enough(
    count: int, *, proof: bool, make: Make, text: Path, tmp_path: Path
) -> None:
    settings = how(text, proof=proof, force=True)
    few = dataclasses.replace(settings, calibration=Calibration(source=text, sequences=count, length=32))
    card = quantized(make(), tmp_path / "m.gguf", few)
    assert len(card.evaluations) == proof
    assert read_card(tmp_path / "m.gguf") == card


def test_an_imatrix_that_cannot_be_written_is_refused_before_calibration(
    make: Make, text: Path, tmp_path: Path
) -> None:
    for container, output in (("gguf", tmp_path / "m.gguf"), ("gptq", tmp_path / "out")):
        settings = how(text, save_imatrix=tmp_path / "no" / "i.gguf", container=container)
        with pytest.raises(MissingError, match="no: no such folder; create it first"):
            quantized(make(), output, settings, "int4-g32" if container == "gptq" else "q4_0")
        assert not workspace_path(output).exists()


def test_the_card_says_what_became_of_every_matrix_and_what_it_was_worth(
    make: Make, text: Path, tmp_path: Path
) -> None:
    card = quantized(make(), tmp_path / "m.gguf", how(text))
    rows = {error.name: error for error in card.errors}
    row = rows["blk.0.ffn_down.weight"]
    assert row.method == "gptq"
    assert row.output is not None
    assert row.plain is not None
    assert row.output < row.plain
    assert rows["blk.0.attn_norm.weight"].method == ""
    (gain,) = card.evaluations
    ours, plain = gain.metric("kl_mean"), gain.metric("kl_mean_plain_rounding")
    assert ours is not None
    assert plain is not None
    assert 0 < ours.value < plain.value
    assert Card.from_json(card.to_json()) == card
    assert "output error" in card.to_markdown()


def test_the_same_run_gives_the_same_bytes_whatever_the_threads(make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    for name, threads in (("a", 1), ("b", 2)):
        quantized(model, tmp_path / f"{name}.gguf", dataclasses.replace(how(text, "best"), threads=threads))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_expert_that_saw_no_token_is_rounded_plainly_and_told(make: Make, text: Path, tmp_path: Path) -> None:
    model = make("MixtralConfig", num_local_experts=24, num_experts_per_tok=1, head_dim=16)
    settings = How(method="gptq", calibration=Calibration(source=text, sequences=8, length=8, chunk=4), threads=1)
    card = quantized(model, tmp_path / "m.gguf", settings)
    assert any("saw no calibration token and were rounded plainly" in note for note in card.notes)
    notes = [error.note for error in card.errors if error.name.endswith("_exps.weight")]
    assert any("no calibration token passed through it" in note for note in notes)


def worse(weight: Any, fmt: Any, *, hessian: Any, threads: int = 0) -> QuantizedTensor:
    """Round something else."""
    return rtn.quantize(weight * 0.5, fmt, threads=threads)


def test_a_method_that_is_worse_than_rounding_is_not_taken(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**METHODS, "worse": Method(worse, needs=("hessian",))}
    for module in (run, rewrites):
        monkeypatch.setattr(module, "METHODS", changed)
    card = quantized(make(), tmp_path / "m.gguf", how(text, "worse"))
    rows = [error for error in card.errors if error.output is not None]
    assert rows
    assert all(error.method == "rtn" and "plain rounding comes closer" in error.note for error in rows)


def test_a_model_that_is_worse_than_plain_rounding_is_written_by_force_alone(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.pipeline.calibrated.held_out.Gain.is_worse", True)
    output, model = tmp_path / "m.gguf", make()
    with pytest.raises(QualityError, match="gptq is worse than plain rounding on held-out text"):
        quantized(model, output, how(text))
    assert not output.exists()
    quantized(model, output, how(text, force=True, resume=True))
    assert output.exists()


def test_what_was_seen_becomes_an_imatrix_and_is_taken_again(make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    quantized(model, tmp_path / "m.gguf", how(text, "rtn", save_imatrix=tmp_path / "i.gguf"))
    found = importance_from(tmp_path / "i.gguf", model)
    assert found["blk.1.ffn_down.weight"].shape == (96,)
    assert read_imatrix(tmp_path / "i.gguf").chunks == 24
    other = make(num_hidden_layers=1)
    with pytest.raises(SchemeError, match=r"is no tensor of .* the file belongs to another model"):
        importance_from(tmp_path / "i.gguf", other)


def test_experts_that_an_older_imatrix_holds_in_one_row_get_one_each(make: Make, tmp_path: Path) -> None:
    model, name = make(), "blk.0.ffn_down.weight"
    tensors = [dataclasses.replace(tensor, shape=(3, *tensor.shape)) for tensor in model.tensors if tensor.name == name]
    values = np.arange(3 * 96, dtype=np.float32)
    entry = struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 2, values.size) + values.tobytes()
    (tmp_path / "i.dat").write_bytes(struct.pack("<i", 1) + entry)
    found = importance_from(tmp_path / "i.dat", dataclasses.replace(model, tensors=tuple(tensors)))
    np.testing.assert_array_equal(found[name], values.reshape(3, 96) / 2)


@pytest.mark.parametrize(
    ("container", "name"),
    [("gptq", "int4-g32"), ("gptq_v2", "int4-g32-asym"), ("awq", "int4-g32-asym"), ("compressed-tensors", "int8-g32")],
)
def test_a_checkpoint_for_other_engines_has_the_methods_codes(
    container: str, name: str, make: Make, text: Path, tmp_path: Path
) -> None:
    model = make(num_key_value_heads=4)
    card = quantized(model, tmp_path / "out", how(text, container=container), name)
    back = {tensor.name: tensor for tensor in load(tmp_path / "out").tensors}
    for tensor in model.tensors:
        other, weight = back[tensor.name], tensor.read(0, tensor.rows)
        error = np.linalg.norm(other.read(0, other.rows) - weight) / np.linalg.norm(weight)
        assert error == pytest.approx(
            next(row.relative or 0.0 for row in card.errors if row.name == tensor.name), abs=1e-6
        )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == container.removesuffix("_v2")
    assert (tmp_path / "out" / "out.card.json").is_file()


def test_a_folder_of_somebody_else_is_refused_before_any_work(make: Make, text: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "diary.txt").touch()
    settings = how(text, container="gptq", tell=lambda told: pytest.fail(f"{told}, and the folder is not ours"))
    with pytest.raises(FormatError, match=r"diary\.txt: was not written by tersor"):
        quantized(make(), tmp_path / "theirs", settings, "int4-g32")


def test_the_plan_of_memory_is_told_before_anything_runs(make: Make, text: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def progress(*_: object) -> None:
        assert len(told) == 1

    quantized(make(), tmp_path / "m.gguf", how(text, tell=told.append, progress=progress))
    assert told[0].startswith("planned peak memory ")
    assert "block " in told[0]
    assert "hidden states" in told[0]


def test_awq_changes_the_norms_of_a_checkpoint_too(make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    quantized(model, tmp_path / "out", how(text, "awq", container="compressed-tensors", force=True), "int4-g32")
    back = {tensor.name: tensor for tensor in load(tmp_path / "out").tensors}
    norms = [tensor for tensor in model.tensors if tensor.name.endswith("_norm.weight") and tensor.layer is not None]
    assert any((back[norm.name].read(0, 1) != norm.read(0, 1)).any() for norm in norms)


def test_a_turned_model_is_refused_where_rows_of_a_checkpoint_are_wanted(
    make: Make, text: Path, tmp_path: Path
) -> None:
    settings = how(text, "hadamard+gptq", container="compressed-tensors")
    with pytest.raises(SchemeError, match="hadamard mixes the rows of the checkpoint's tensors: it is written as GGUF"):
        quantized(make(), tmp_path / "out", settings, "int4-g32")


def test_engines_are_asked_to_round_activations(make: Make, text: Path, tmp_path: Path) -> None:
    settings = how(text, "smoothquant+gptq", container="compressed-tensors", activations=True, force=True)
    card = quantized(make(), tmp_path / "out", settings, "int8-channel")
    assert "engines round activations to 8 bits as well: no error or gain here knows of that" in card.notes
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["input_activations"]["num_bits"] == 8
    assert group["input_activations"]["dynamic"] is True


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("gguf q8_0", "a GGUF cannot ask for it"),
        ("gptq int8-channel", "gptq quantizes weights only"),
        ("compressed-tensors int4-g32", "go with int8-channel-sym and fp8_e4m3, not with int4-g32"),
    ],
)
def test_activations_that_no_engine_would_round_are_refused_before_anything_is_calibrated(
    asked: str, told: str, make: Make, text: Path, tmp_path: Path
) -> None:
    container, name = asked.split()
    seen: list[str] = []
    settings = how(text, container=container, activations=True, progress=lambda where, _now, _all: seen.append(where))
    with pytest.raises(SchemeError, match=told):
        quantized(make(), tmp_path / "out", settings, name)
    assert not seen


def test_a_layer_too_narrow_for_its_group_is_kept_as_it_is(make: Make, text: Path, tmp_path: Path) -> None:
    card = quantized(make(), tmp_path / "out", how(text, container="compressed-tensors"), "int4-g64")
    rows = {tensor.name: tensor for tensor in card.plan.tensors}
    assert rows["blk.0.ffn_down.weight"].reason == "kept as it is: 96 columns do not divide into groups of 64"
    assert rows["blk.0.attn_q.weight"].reason == "matrix of a block"


def test_a_format_that_fits_nothing_is_refused(make: Make, text: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SchemeError, match=r"no matrix of .* can be int4-g40 in gptq: .* do not divide into groups of 40"
    ):
        quantized(make(), tmp_path / "out", how(text, container="gptq"), "int4-g40")


def test_activations_that_are_not_finite_are_named(make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    broken = next(tensor for tensor in model.tensors if tensor.name == "blk.0.attn_norm.weight")

    @dataclasses.dataclass(frozen=True)
    class Huge:
        shape: tuple[int, ...]

        def read(self, start: int, stop: int) -> Any:
            return np.full((stop - start, self.shape[-1]), 3e38, np.float32)

    changed = dataclasses.replace(broken, values=Huge(broken.shape))
    tensors = tuple(changed if tensor is broken else tensor for tensor in model.tensors)
    with pytest.raises(FormatError, match=r"block 0, input of .*: the activations are not finite"):
        quantized(dataclasses.replace(model, tensors=tensors), tmp_path / "m.gguf", how(text))


def test_too_little_text_and_unknown_methods_are_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the cat sat")
    with pytest.raises(MissingError, match="give more text or shorter sequences"):
        quantized(make(), tmp_path / "m.gguf", how(tmp_path / "short.txt"))
    with pytest.raises(SchemeError, match="unknown method 'gptqq'; there are rtn"):
        quantized(make(), tmp_path / "m.gguf", how(tmp_path / "short.txt", "gptqq"))


def command(model: Model, text: Path, output: Path, *more: str) -> list[str]:
    folder = next(file.parent for file in model.files if file.name == "config.json")
    words = [sys.executable, "-m", "tersor", "quantize", str(folder), "-o", str(output), "--format", "q4_0"]
    words += ["--method", "gptq", "--calibration", str(text), "--calibration-sequences", "24"]
    return [*words, "--calibration-length", "32", "--calibration-chunk", "2", "--threads", "1", *more]


def killed(words: list[str], folder: Path, seconds: float) -> None:
    """Start the command and end it with SIGKILL once work lies on disk and `seconds` more have passed."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while process.poll() is None and not (folder / "run.json").exists() and time.monotonic() - began < 60:
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()


def resume_after_kills(model: Model, text: Path, tmp_path: Path, moments: list[float]) -> None:
    subprocess.run(command(model, text, tmp_path / "whole.gguf"), check=True, capture_output=True, timeout=120)
    for number, seconds in enumerate(moments):
        output = tmp_path / f"m{number}.gguf"
        killed(command(model, text, output), workspace_path(output), seconds)
        subprocess.run(command(model, text, output, "--resume"), check=True, capture_output=True, timeout=120)
        assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
        assert not workspace_path(output).exists()


def test_a_killed_run_resumes_to_the_same_bytes(make: Make, text: Path, tmp_path: Path) -> None:
    resume_after_kills(make(num_hidden_layers=6), text, tmp_path, [0.05, 0.3])


@pytest.mark.slow
def test_twenty_killed_runs_resume_to_the_same_bytes(make: Make, text: Path, tmp_path: Path) -> None:
    moments = np.random.default_rng(5).uniform(0, 0.9, 20).tolist()
    resume_after_kills(make(num_hidden_layers=6), text, tmp_path, moments)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_give_the_codes_of_one(ranks: int, make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    subprocess.run(command(model, text, tmp_path / "one.gguf"), check=True, capture_output=True, timeout=120)
    words = command(model, text, tmp_path / "some.gguf")
    launcher = [words[0], "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, *words[1:]], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    one, some = GgufFile(tmp_path / "one.gguf"), GgufFile(tmp_path / "some.gguf")
    for name, tensor in one.tensors.items():
        rows = int(np.prod(tensor.shape[:-1]))
        np.testing.assert_array_equal(some.read_bytes(name, 0, rows), one.read_bytes(name, 0, rows))

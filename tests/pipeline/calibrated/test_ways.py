"""Each way to an artefact does what was asked for, or says that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tersor.cli.main import app
from tersor.core.card import Card
from tersor.core.errors import SchemeError
from tersor.files.gguf import GgufFile
from tersor.models import Model, load
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.conversion import quantize

pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")

Make = Callable[..., Model]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


@pytest.fixture
def calibration(text: Path) -> Calibration:
    return Calibration(source=text, sequences=24, length=32, chunk=4)


def packed(path: Path) -> dict[str, bytes]:
    with GgufFile(path) as file:
        return {name: file.read_bytes(name).tobytes() for name in file.tensors}


def values(source: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {one.name: one.read(0, one.rows) for one in load(source).tensors}


def test_plain_rounding_by_what_a_text_says_takes_the_search_that_was_asked_for(
    make: Make, calibration: Calibration, tmp_path: Path
) -> None:
    model, found = make(**WIDE), {}
    for search in ("best", "ggml"):
        out = tmp_path / f"{search}.gguf"
        quantize(model, "q4_0", output=out, method="rtn", calibration=calibration, search=search, proof=False)
        found[search] = packed(out)
    changed = {name for name, data in found["best"].items() if data != found["ggml"][name]}
    assert {"blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"} <= changed


def test_llama_cpp_s_search_and_the_importance_of_a_text_are_those_of_its_file(
    make: Make, calibration: Calibration, tmp_path: Path
) -> None:
    model = make(**WIDE)
    saved, direct, later = (tmp_path / name for name in ("im.gguf", "direct.gguf", "later.gguf"))
    how: dict[str, Any] = {"search": "ggml", "proof": False, "save_imatrix": saved}
    quantize(model, "q4_0", output=direct, method="rtn", calibration=calibration, **how)
    folder = str(model.folder)
    words = ["quantize", folder, "-o", str(later), "--format", "q4_0", "--imatrix", str(saved), "--search", "ggml"]
    assert CliRunner().invoke(app, words).exit_code == 0
    one, other = packed(direct), packed(later)
    assert {name for name in one if name.startswith("blk.") and one[name] != other[name]} == set()


@pytest.mark.parametrize("container", ["compressed-tensors", "gptq"])
def test_plain_rounding_into_a_container_reads_no_text(
    container: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a text was read")

    monkeypatch.setattr("tersor.pipeline.calibrated.quantize.read_sequences", never)
    model, out = make(num_key_value_heads=4), tmp_path / "out"
    card = quantize(model, "int4-g32", output=out, container=container)
    assert card.plan.recipe.method == "rtn"
    assert card.plan.recipe.calibration == ""
    assert model.folder is not None
    for name, wanted in values(model.folder).items():
        found = values(out)[name]
        step = abs(wanted).max() / 7
        assert abs(found - wanted).max() <= (step if ".attn_" in name or ".ffn_" in name else 0), name


def test_a_format_of_one_scale_for_all_rows_is_rounded_as_a_whole(make: Make, tmp_path: Path) -> None:
    model = make(num_key_value_heads=4)
    monkeypatch = pytest.MonkeyPatch()
    made = []
    for step in (1 << 22, 64):  # weights at once
        with monkeypatch.context() as patch:
            patch.setattr("tersor.pipeline.calibrated.checkpoint.ROWS_AT_ONCE", step)
            out = tmp_path / f"{step}"
            quantize(model, "int8-tensor", output=out, container="compressed-tensors")
            made.append(values(out))
    for name, whole in made[0].items():
        np.testing.assert_array_equal(made[1][name], whole, err_msg=name)


OUT, GGUF = ["--container", "compressed-tensors", "--format", "int4-g32"], ["--format", "q4_0"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([*GGUF, "--save-imatrix", "im.gguf"], "--save-imatrix means nothing here: it belongs to calibration"),
        ([*GGUF, "--round-activations"], "--round-activations means nothing here: llama.cpp rounds"),
        ([*GGUF, "--device", "cuda"], "--device means nothing here: it belongs to calibration"),
        ([*OUT, "--output-format", "q8_0"], "--output-format means nothing here: it is of GGUF files"),
        ([*OUT, "--split-max-tensors", "2"], "--split-max-tensors means nothing here"),
        ([*OUT, "--split-max-size", "2GB"], "--split-max-size means nothing here"),
        ([*OUT, "--no-fallback"], "--no-fallback means nothing here"),
        ([*OUT, "--search", "ggml"], "--search means nothing here"),
        ([*OUT, "--method", "gptq", "--embedding-format", "q8_0"], "--embedding-format means nothing here"),
        ([*GGUF, "--method", "gptq", "--search", "ggml"], "--search is of --method rtn; gptq looks for grids"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(words: list[str], problem: str, make: Make, tmp_path: Path) -> None:
    out = tmp_path / ("m.gguf" if words[1] == "q4_0" else "out")
    done = CliRunner().invoke(app, ["quantize", str(make().folder), "-o", str(out), *words])
    assert done.exit_code == 1
    assert problem in str(done.exception)
    assert not out.exists()


def test_importance_of_a_file_and_a_text_at_once_are_refused(
    make: Make, calibration: Calibration, tmp_path: Path
) -> None:
    model = make()
    given = {"blk.0.attn_q.weight": np.ones(64, np.float32)}
    with pytest.raises(SchemeError, match="--imatrix means nothing here: calibration finds"):
        quantize(model, "q4_0", output=tmp_path / "m.gguf", calibration=calibration, importance=given)


@pytest.mark.parametrize(
    "option", [["--tensor-format", "ffn_down=int4-g32"], ["--round-activations"], ["--search", "ggml"]]
)
def test_a_source_whose_codes_are_kept_takes_no_other_choices(option: list[str], make: Make, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    quantize(make(num_key_value_heads=4), "int4-g32", output=source, container="gptq")
    words = ["quantize", str(source), "-o", str(out), "--container", "awq", "--format", "int4-g32", *option]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert f"{option[0]} means nothing here" in str(done.exception)


def dry(*words: str) -> Card:
    done = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    return Card.from_json(done.stdout)


def test_a_dry_run_shows_the_plan_of_the_run(make: Make, calibration: Calibration, text: Path, tmp_path: Path) -> None:
    model = make(**{**WIDE, "num_hidden_layers": 8})
    out = tmp_path / "m.gguf"
    shown = dry("quantize", str(model.folder), "-o", str(out), "--format", "q4_0", "--calibration", str(text))
    made = quantize(model, "q4_0", output=out, method="rtn", calibration=calibration, proof=False)
    assert shown.plan.tensors == made.plan.tensors
    assert {row.format for row in made.plan.tensors} > {"q4_0", "q4_1"}, "the plan depends on what is known"
    assert shown.plan.recipe.method == "best"


@pytest.mark.parametrize("is_quantized", [False, True])
def test_a_dry_run_shows_what_a_container_takes(is_quantized: bool, make: Make, tmp_path: Path) -> None:
    model = make(num_key_value_heads=4)
    source, out = model.folder, tmp_path / "out"
    assert source is not None
    if is_quantized:
        source = tmp_path / "source"
        quantize(model, "int4-g32", output=source, container="gptq")
    words = ["quantize", str(source), "-o", str(out), "--container", "awq", "--format", "int4-g32-asym"]
    shown = dry(*words)
    assert not out.exists()
    made = quantize(str(source), "int4-g32-asym", output=out, container="awq")
    assert shown.plan.tensors == made.plan.tensors
    assert shown.nbytes <= made.nbytes < shown.nbytes + (1 << 20)


def test_a_dry_run_needs_no_weights(make: Make, tmp_path: Path) -> None:
    model = make()
    assert model.folder is not None
    words = ("quantize", str(model.folder), "-o", str(tmp_path / "m.gguf"), "--format", "q4_0")
    with_weights = dry(*words)
    (model.folder / "model.safetensors").unlink()
    found = dry(*words)
    assert found.plan.tensors == with_weights.plan.tensors
    assert abs(found.nbytes - with_weights.nbytes) < 1 << 10, "but for the names of source files"
    assert found.source_bytes == pytest.approx(with_weights.source_bytes, rel=0.1)
    assert any("by config.json alone" in note for note in found.notes)

"""`tersor analyse`, `tersor plan` and `tersor quantize --plan`, by what they print and write."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tests.cli.conftest import Run
from tests.neighbours import neighbour

from tersor.models import load

TEXT = ("-c", "TEXT", "--calibration-sequences", "24", "--calibration-length", "32")


_planning = neighbour("pipeline/planning/conftest", "cli")
plain_tokenizer, build = _planning.plain_tokenizer, _planning.build
FORMATS = ("--formats", "q4_0,q4_k,q8_0", "--method", "gptq")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Letters that the tiny model's vocabulary has."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz" * 80, encoding="utf-8")
    return path


def words(text: Path, options: tuple[str, ...]) -> list[str]:
    """Options with the text in its place."""
    return [str(text) if word == "TEXT" else word for word in options]


def test_from_a_model_to_a_file_by_a_plan(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    saved, plan, output = tmp_path / "saved", tmp_path / "plan.yaml", tmp_path / "out.gguf"
    analysed = run("analyse", model, "-o", saved, *words(text, TEXT), *FORMATS)
    assert analysed.code == 0, analysed.err
    assert "divergence if only this tensor took the format" in analysed.out
    assert "put together: estimated" in analysed.out
    page = (saved / "analysis.html").read_text(encoding="utf-8")
    assert "Every tensor in every format" in page
    assert "attn_q.weight as q4_k" in page

    options = ("--analysis", saved, "--bits-per-weight", "6", "--trials", "2")
    planned = run("plan", model, *options, "-o", plan, "--explain", "blk.0.attn_q")
    assert planned.code == 0, planned.err
    assert "predicted divergence" in planned.out
    assert "chosen" in planned.out
    assert "a byte is worth" in planned.out
    step = ["tersor", "quantize", str(model), "-o", "OUT.gguf", "--plan", str(plan), "--calibration", "TEXT"]
    assert f"next  {shlex.join(step)}\n" in planned.out
    document = run("plan", model, *options, "--json").document
    assert document["predicted"]["bits_per_weight"] <= 6

    for more, told in (
        (("--explain", "blk.0.attn_q", "--json"), "--explain tells a person: leave --json out"),
        (("--sweep", "4:8", "--explain", "blk.0.attn_q"), "--explain means nothing for --sweep"),
        (("--sweep", "4:8", "--trials", "2"), "--trials means nothing for --sweep"),
    ):
        refused = run("plan", model, *options[: 4 if "--json" in more else 2], *more)
        assert (refused.code, told in refused.err) == (1, True), refused.err
    refused = run("quantize", model, "-o", output, "--plan", plan)
    assert refused.code == 1
    assert "the plan was made for gptq, which has to know a text" in refused.err
    made = run("quantize", model, "-o", output, "--plan", plan, *words(text, TEXT), "--no-proof", "--force", "--json")
    assert made.code == 0, made.err
    formats = {tensor["name"]: tensor["format"] for tensor in made.document["plan"]["tensors"]}
    assert {name: formats[name] for name in document["formats"]} == document["formats"]
    assert made.document["plan"]["recipe"]["method"] == "gptq"
    assert len(load(str(output)).tensors) == len(formats)


def test_a_plan_analyses_first_and_a_second_one_does_not(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    plan, page = tmp_path / "plan.yaml", tmp_path / "curve.html"
    ask = ("plan", model, *words(text, TEXT), *FORMATS)
    first = run(*ask, "-o", plan, "--max-size", "1MiB", "--trials", "0")
    assert first.code == 0, first.err
    kept = (tmp_path / "plan.analysis" / "analysis.json").stat().st_mtime_ns
    assert run(*ask, "-o", plan, "--max-kl", "0.5", "--trials", "0").code == 0
    assert (tmp_path / "plan.analysis" / "analysis.json").stat().st_mtime_ns == kept
    swept = run(
        "plan", model, "--analysis", tmp_path / "plan.analysis", "--sweep", "4:8", "--bandwidth", "10", "-o", page
    )
    assert swept.code == 0, swept.err
    assert "tokens/s at most" in swept.out
    assert "<svg" in page.read_text(encoding="utf-8")


def test_an_analysis_that_is_not_there_is_made_only_where_a_text_was_given_for_it(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    asked = ("plan", model, "-o", tmp_path / "plan.yaml", "--bits-per-weight", "6", "--trials", "0", "--analysis")
    refused = run(*asked, tmp_path / "typo")
    assert (refused.code, "typo: no such analysis; is the name right?" in refused.err) == (1, True), refused.err
    (tmp_path / "empty").mkdir()
    refused = run(*asked, tmp_path / "empty")
    assert (refused.code, "empty: holds no finished analysis" in refused.err) == (1, True), refused.err
    refused = run(*asked, tmp_path / "no" / "such", *words(text, TEXT))
    assert (refused.code, f"{tmp_path / 'no'}: no such folder; create it first" in refused.err) == (1, True)
    refused = run(*asked, text, *words(text, TEXT))
    assert (refused.code, "text.txt: a file has this name, and a folder is needed" in refused.err) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.txt"]

    made = run(*asked, tmp_path / "new", *words(text, TEXT), *FORMATS)
    assert made.code == 0, made.err
    assert "new: no such analysis; one is made now, and kept there\n" in made.err
    again = run(*asked, tmp_path / "new")
    assert (again.code, again.err) == (0, "")


@pytest.mark.parametrize(
    ("container", "formats", "made"),
    [("gguf", "q4_0,q8_0", "OUT.gguf"), ("compressed-tensors", "int4-g32-asym,int8-channel-sym", "OUT/config.json")],
)
def test_the_next_step_works_as_it_is_printed(
    run: Run, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, container: str, formats: str, made: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = build("LlamaConfig", **_planning.SHAPE).folder
    Path("my words.txt").write_text(" ".join(_planning.WORDS * 300), encoding="utf-8")
    cut = ("-c", "my words.txt", "--calibration-sequences", "40", "--calibration-length", "32")
    options = ("--container", container, "--formats", formats, "--bits-per-weight", "24", "--trials", "0")
    planned = run("plan", folder, "-o", "plan.yaml", "--method", "gptq", *cut, *options)
    assert planned.code == 0, planned.err
    step = shlex.split(planned.out.splitlines()[-1].removeprefix("next  tersor "))
    result = run(*step)
    assert result.code == 0, result.err
    assert Path(made).is_file()
    again = Path("plan.yaml").read_text(encoding="utf-8").splitlines()[1]
    assert again == f"#   tersor quantize MODEL -o {Path(made).parts[0]} --plan plan.yaml --calibration TEXT"


def test_what_cannot_be_meant_is_refused_before_any_work(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    for arguments, message in (
        (("plan", model, "-o", plan), "a plan needs a goal"),
        (("plan", model, "--bits-per-weight", "4"), "give --output for the plan, or --analysis"),
        (("plan", model, "-o", plan, "--bits-per-weight", "4", "--target", "tpu"), "no target 'tpu'"),
        (("plan", model, "-o", plan, "--target", "gpu", "--max-latency-ms", "9"), "is not known: give --bandwidth"),
        (("plan", model, "-o", plan, "--bits-per-weight", "4", "--max-drop", "1"), "--max-drop means nothing for a"),
        (("plan", model, "-o", plan, "--bits-per-weight", "4", "--formats", "int4-g32"), "a GGUF cannot hold weights"),
        (("analyse", model, "-o", tmp_path / "a", "--method", "awq"), "a plan is made for one of"),
        (("quantize", model, "-o", tmp_path / "m.gguf", "--plan", plan), "cannot be read"),
    ):
        refused = run(*arguments)
        assert (refused.code, message in refused.err) == (1, True), refused.err
    plan.write_text("schema: tersor.mix/1\ntensors: {blk.0.attn_q.weight: q8_0}\n", encoding="utf-8")
    both = run("quantize", model, "-o", tmp_path / "m.gguf", "--plan", plan, "--format", "q4_0")
    assert "--format and --plan both say" in both.err
    other = run("quantize", model, "-o", tmp_path / "m", "--plan", plan, "--container", "gptq", *words(text, TEXT))
    assert "gptq cannot hold those" in other.err
    plain = run("quantize", model, "-o", tmp_path / "m.gguf", "--plan", plan)
    assert plain.code == 0, plain.err

"""The plan as YAML: written, read, edited, and refused where it is no plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.models import load
from tersor.pipeline.planning.plan_file import PlanFile, Share
from tersor.pipeline.steps.planning import make_plan

PLAN = PlanFile(
    {"token_embd.weight": "q8_0", "blk.0.attn_q.weight": "q4_0", "blk.1.ffn_down.weight": "q4_0"},
    model="on: a name that YAML must quote",
    target="cpu",
    method="best",
    calibration="text #1, seed 3",
    goal="at most 4 bits per weight",
    predicted={"kl": 0.0123456789, "file_bytes": 123456789012},
    measured={"kl": 1e-9},
)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    PLAN.save(path, {"blk.0.attn_q.weight": Share(2048, 1.5e-4, 0.25)})
    text = path.read_text(encoding="utf-8")
    assert "blk.0.attn_q.weight: q4_0 # 2.00 KiB, 1.50e-04, 25.0%" in " ".join(text.split())
    found = PlanFile.load(path)
    assert found.formats == PLAN.formats
    assert (found.model, found.calibration, found.goal) == (PLAN.model, PLAN.calibration, PLAN.goal)
    assert found.measured == {"kl": 1e-9}
    assert found.predicted == {"kl": pytest.approx(0.0123457), "file_bytes": 123456789012}


def test_the_plan_of_a_net_is_version_2_and_names_operators(tmp_path: Path, tiny_gguf: Callable[..., Path]) -> None:
    path = tmp_path / "plan.yaml"
    plan = PlanFile({"conv1": "fp16", "fc": "int4"}, container="onnx", engine="onnxruntime", activations="static")
    plan.save(path, {"fc": Share(10, 1e-3, 0.5)})
    text = path.read_text(encoding="utf-8")
    assert "schema: tersor.mix/2" in text
    assert "tersor quantize NET" in text
    assert PlanFile.load(path) == plan
    assert PlanFile({"a": "int8", "b": "int8", "c": "fp32"}, container="onnx").operator_formats("abcd", "net") == {
        **dict.fromkeys("abd", "int8"),
        "c": "fp32",
    }
    with pytest.raises(SchemeError, match="names 'fc', which net does not have"):
        plan.operator_formats(["conv1"], "net")
    with pytest.raises(SchemeError, match=r"one of a net: .* is a language model"):
        plan.tensor_formats(load(str(tiny_gguf())))
    with pytest.raises(SchemeError, match="planned as int4, int8, fp16, fp32, not 'q4_0'"):
        PlanFile({"a": "q4_0"}, container="onnx")
    for schema, message in (
        ("1", "a plan of a net has the schema tersor.mix/2"),
        ("3", "tersor.mix/1 or tersor.mix/2"),
    ):
        path.write_text(text.replace("mix/2", f"mix/{schema}"), encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            PlanFile.load(path)
    path.write_text("schema: tersor.mix/1\nengine: x\ntensors: {a: q4_0}\n", encoding="utf-8")
    with pytest.raises(FormatError, match="unknown keys"):
        PlanFile.load(path)


def test_a_plan_by_hand_needs_no_more_than_its_tensors(tmp_path: Path, tiny_gguf: Callable[..., Path]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schema: tersor.mix/1\nbase: q8_0\ntensors:\n  blk.0.attn_q.weight: Q4_0\n", encoding="utf-8")
    found, model = PlanFile.load(path), load(str(tiny_gguf()))
    plan = make_plan(model, found.file_type, tensor_formats=found.tensor_formats(model))
    formats = {tensor.name: tensor.format for tensor in plan.tensors}
    assert formats["blk.0.attn_q.weight"] == "q4_0"
    assert formats["blk.0.attn_k.weight"] == "q8_0"
    assert formats["blk.0.attn_norm.weight"] == "f32"


def test_every_tensor_gets_what_the_plan_says_and_the_rest_its_most_common_format(
    tiny_gguf: Callable[..., Path],
) -> None:
    model = load(str(tiny_gguf()))
    assert PLAN.file_type == "q4_0_pure"
    plan = make_plan(model, PLAN.file_type, tensor_formats=PLAN.tensor_formats(model))
    formats = {tensor.name: tensor.format for tensor in plan.tensors}
    assert {name: formats[name] for name in PLAN.formats} == PLAN.formats
    assert formats["blk.0.attn_k.weight"] == "q4_0"


def test_a_tensor_that_the_model_does_not_have_is_named_with_near_ones(tiny_gguf: Callable[..., Path]) -> None:
    plan = PlanFile({"blk.0.attn_qq.weight": "q4_0"})
    with pytest.raises(SchemeError, match=r"blk\.0\.attn_qq\.weight.*near it are blk\.0\.attn_q\.weight"):
        plan.tensor_formats(load(str(tiny_gguf())))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan of schema"),
        ("schema: tersor.mix/9\ntensors: {a: q4_0}", "not a plan of schema"),
        ("schema: tersor.mix/1", "tensors must be name: format"),
        ("schema: tersor.mix/1\ntensors: [a]", "tensors must be name: format"),
        ("schema: tersor.mix/1\ntensors: {a: 4}", "is no name: format"),
        ("schema: tersor.mix/1\ntensors: {a: on}", "is no name: format"),
        ("schema: tersor.mix/1\ntensors: {a: q4_0}\nextra: 1", "unknown keys"),
        ("schema: tersor.mix/1\ntensors: {a: q4_0}\nmethod: 3", "method must be text"),
        ("schema: tersor.mix/1\ntensors: {a: q4_0}\npredicted: {kl: .nan}", "is no name: number"),
        ("schema: tersor.mix/1\ntensors: {a: q4_0}\npredicted: 3", "must be name: number"),
        (
            "schema: tersor.mix/1\ntensors:\n  a: q4_0\n  b: q8_0\n  'a': q8_0",
            r"yaml: 'a' stands twice, in lines 3 and 5",
        ),
        ("schema: tersor.mix/1\ntensors: {a: q4_0}\ntensors: {b: q4_0}", "'tensors' stands twice, in lines 2 and 3"),
        ("{", "not a YAML document"),
        ("schema: !!python/object/apply:os.system [true]", "not a YAML document"),
        ("\x00", "not a YAML document"),
        ("[" * 5000, "brackets within brackets"),
    ],
)
def test_what_is_no_plan_is_refused_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        PlanFile.load(path)


def test_a_plan_cannot_grow_by_aliases(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    path = tmp_path / "plan.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    began = perf_counter()
    with pytest.raises(FormatError, match="aliases have no place"):
        PlanFile.load(path)
    assert perf_counter() - began < 30


def test_wrong_formats_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="a: a GGUF cannot hold weights in 'q4_7'"):
        PlanFile({"a": "q4_7"})
    with pytest.raises(SchemeError, match="no file type"):
        PlanFile({"a": "q4_0"}, base="nothing")
    with pytest.raises(SchemeError, match="names no tensor"):
        PlanFile({})
    with pytest.raises(MissingError, match="cannot be read"):
        PlanFile.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not a text file"):
        PlanFile.load(tmp_path / "binary.yaml")

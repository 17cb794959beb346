"""Plans: what they add up to, and that a saved one comes back the same or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import FormatError, MissingError
from tersor.core.plan import Plan, PlannedTensor, Recipe

PLAN = Plan(
    model="tiny",
    architecture="llama",
    recipe=Recipe("q4_k_m", "table-1", ("attn_v=q8_0",), output_format="q8_0"),
    tensors=(
        PlannedTensor("a.weight", (4, 256), "BF16", "q4_k", "q4_k_m: default", "", 576),
        PlannedTensor("b.weight", (2, 96), "BF16", "q5_0", "fallback: 96 columns …", "q4_k", 132),
        PlannedTensor("a_norm.weight", (256,), "BF16", "f32", "kept f32: norm", "", 1024),
    ),
)


def test_a_saved_plan_comes_back_equal(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json(), encoding="utf-8")
    assert Plan.load(tmp_path / "plan.json") == PLAN


def test_sizes_add_up() -> None:
    assert PLAN.weights == 1024 + 192 + 256
    assert PLAN.nbytes == 576 + 132 + 1024
    assert PLAN.bits_per_weight == pytest.approx(1732 * 8 / 1472)
    assert PLAN.tensors[0].bits_per_weight == 4.5
    assert [tensor.name for tensor in PLAN.fallbacks] == ["b.weight"]


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **values})


def recipe(**values: Any) -> dict[str, Any]:
    return {**json.loads(PLAN.to_json())["recipe"], **values}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"p: not a JSON document"),
        ("[]", r"p: an object is needed, got list"),
        ("{}", r"p: missing keys \['architecture', 'model', 'recipe', 'schema', 'tensors'\]"),
        (changed(extra=1), r"p: missing keys \[\], unknown keys \['extra'\]"),
        (changed(schema="tersor.plan/9"), r"p: schema 'tersor\.plan/9', this version reads 'tersor\.plan/2'"),
        (changed(model=3), r"p: model must be str, got 3"),
        (changed(tensors={}), r"p: tensors: a list is needed, got dict"),
        (changed(tensors=[{}]), r"p: tensors\[0\]: missing keys"),
        (
            changed(recipe=recipe(fallback=1)),
            r"recipe: fallback must be bool, got 1",
        ),
        (
            changed(recipe=recipe(tensor_formats=[3])),
            r"recipe: tensor_formats\[0\] must be str",
        ),
    ],
)
def test_a_document_that_is_not_a_plan_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Plan.from_json(text, place="p")


def test_a_tensor_with_a_broken_shape_is_refused() -> None:
    document = json.loads(PLAN.to_json())
    document["tensors"][1]["shape"] = ["4", 256]
    with pytest.raises(FormatError, match=r"p: tensors\[1\]: shape\[0\] must be int, got '4'"):
        Plan.from_object(document, place="p")


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.json: cannot be read"):
        Plan.load(tmp_path / "none.json")


def test_a_plan_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match=r"p\.json: not a text file"):
        Plan.load(tmp_path / "p.json")


def test_a_plan_of_the_first_schema_is_read() -> None:
    document = json.loads(PLAN.to_json())
    for key in ("method", "calibration"):
        del document["recipe"][key]
    assert Plan.from_json(json.dumps({**document, "schema": "tersor.plan/1"})) == PLAN

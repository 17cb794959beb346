"""Plans made from models: formats, bytes and reasons, with no weight read."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tersor.core.errors import SchemeError, ShapeError
from tersor.core.plan import Plan
from tersor.formats import FORMATS
from tersor.pipeline.steps.planning import make_plan

from ..conftest import Held, MakeModel


def test_a_plan_states_format_reason_and_bytes_of_every_tensor(make_model: MakeModel) -> None:
    model = make_model()
    plan = make_plan(model, "q4_k_m", tensor_formats=("attn_k=q8_0",))
    assert [tensor.name for tensor in plan.tensors] == [tensor.name for tensor in model.tensors]
    rows = {tensor.name: tensor for tensor in plan.tensors}
    assert (rows["output.weight"].format, rows["output.weight"].reason) == ("q6_k", "q4_k_m: rule 1, output")
    assert rows["blk.1.attn_k.weight"].reason == "override: attn_k=q8_0"
    assert rows["blk.0.attn_norm.weight"].reason == "kept f32: norm"
    for tensor in plan.tensors:
        rows_of_it = tensor.weights // tensor.shape[-1]
        assert tensor.nbytes == rows_of_it * FORMATS[tensor.format].row_bytes(tensor.shape[-1])
    assert Plan.from_json(plan.to_json()) == plan


def test_no_weight_is_read(make_model: MakeModel) -> None:
    model = make_model()
    make_plan(model, "q2_k")
    for tensor in model.tensors:
        assert isinstance(tensor.values, Held)
        assert tensor.values.reads == []


def test_the_recipe_keeps_what_was_asked_for(make_model: MakeModel) -> None:
    recipe = make_plan(
        make_model(),
        "Q4_K_M",
        tensor_formats=["ffn=Q6_K"],
        output_format="Q8_0",
        embedding_format="q5_k",
        search="ggml",
    ).recipe
    assert recipe.format == "q4_k_m"
    assert recipe.tensor_formats == ("ffn=Q6_K",)
    assert (recipe.output_format, recipe.embedding_format, recipe.search) == ("q8_0", "q5_k", "ggml")
    assert recipe.mixture.startswith("llama.cpp-")
    assert recipe.importance == ""


def test_importance_switches_the_rules_that_ask_for_it(make_model: MakeModel) -> None:
    importance = {"blk.0.ffn_down.weight": np.ones(512, np.float32)}
    assert make_plan(make_model(), "q4_0", importance=importance).recipe.importance == "given"


@pytest.mark.parametrize(
    ("name", "vector", "message"),
    [
        ("blk.9.ffn_down.weight", np.ones(4, np.float32), r"'blk\.9\.ffn_down\.weight', but the model has no such"),
        ("blk.0.ffn_down.weight", np.ones(4, np.float32), r"must have shape \(512,\), got \(4,\)"),
    ],
)
def test_importance_that_does_not_fit_is_refused(
    make_model: MakeModel, name: str, vector: np.ndarray[tuple[int], np.dtype[np.float32]], message: str
) -> None:
    with pytest.raises((SchemeError, ShapeError), match=message):
        make_plan(make_model(), "q4_0", importance={name: vector})


def test_an_unknown_search_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(SchemeError, match=re.escape("search must be one of best, ggml, got 'bets'")):
        make_plan(make_model(), "q4_0", search="bets")


def test_an_unknown_output_format_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(SchemeError, match=r"a GGUF cannot hold weights in 'q9_k'; did you mean q"):
        make_plan(make_model(), "q4_0", output_format="q9_k")


def test_without_fallback_a_misfit_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ShapeError, match=r"blk\.0\.ffn_down\.weight .*344 columns do not divide by 256"):
        make_plan(make_model(ff=344), "q6_k", fallback=False)

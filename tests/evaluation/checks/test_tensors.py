"""Rounding is forgiven, every usual mistake of a converter is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.evaluation.checks.tensors import BOUNDS, check_tensors
from tersor.formats import FORMATS
from tersor.models import Model, ModelTensor, load

from .conftest import Change, Changed, MakeGguf, unpermuted, with_changes


def changing(name: str, how: object) -> Change:
    def change(tensor: ModelTensor) -> ModelTensor:
        return dataclasses.replace(tensor, values=Changed(tensor.values, how)) if tensor.name == name else tensor  # type: ignore[arg-type]

    return change


def test_an_exact_file_has_no_error(exact: Path, source: Model) -> None:
    check = check_tensors(load(exact), source)
    assert check.status == "passed"
    assert check.numbers["worst_relative_error"] == 0
    assert check.numbers["tensors"] == len(source.tensors)


@pytest.mark.parametrize("file_type", ["f16", "bf16", "q8_0", "q4_0", "q5_1", "q2_k", "iq4_nl", "tq2_0"])
def test_rounding_is_within_the_bound_of_its_format(file_type: str, make_gguf: MakeGguf, source: Model) -> None:
    check = check_tensors(load(make_gguf(file_type)), source)
    assert check.status == "passed", check.problems
    assert 0 < check.numbers["relative_error"] == check.numbers["rounding_error"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name.upper() in BOUNDS and name != "f32"])
def test_bounds_lie_between_normal_weights_and_a_tensor_in_the_wrong_place(name: str) -> None:
    weight = np.random.default_rng(2).standard_normal((16, 512), dtype=np.float32)
    form = FORMATS[name]
    decoded = form.decode(form.encode(weight, search="ggml"), 512)
    error = float(np.sqrt(np.mean((decoded - weight) ** 2)))
    assert 1.2 * error < BOUNDS[name.upper()] <= 0.7


@pytest.mark.parametrize("file_type", ["f32", "q4_0"])
def test_a_forgotten_permutation_is_called_by_its_name(file_type: str, make_gguf: MakeGguf, source: Model) -> None:
    check = check_tensors(load(make_gguf(file_type, unpermuted)), source)
    assert check.status == "failed"
    assert check.detail == "4 tensors are not the source's"
    assert check.numbers["tensors_beyond"] == 4
    assert check.numbers["relative_error"] > 3 * check.numbers["rounding_error"]
    (problem,) = check.problems
    assert re.search(r"RoPE permutation of Q and K was left out.*blk\.\d\.attn_[qk]\.weight differs by 1\.\d", problem)


def permuted_again(values: Float32) -> Float32:
    """As for 4 heads of 16 rows."""
    return values.reshape(4, 2, 8, -1).swapaxes(1, 2).reshape(values.shape)


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("blk.0.attn_q.weight", permuted_again, "was made twice"),
        ("blk.1.ffn_norm.weight", lambda x: x - np.float32(1), "the 1 that this architecture adds .* left out"),
        ("output_norm.weight", lambda x: x + np.float32(1), "1 was added .* once too often"),
        ("blk.0.attn_output.weight", lambda x: np.ascontiguousarray(x.T), "transposed"),
        ("blk.1.ffn_up.weight", lambda x: x * np.float32(0.125), "scaled by 0.125"),
        ("token_embd.weight", lambda x: x * np.float32("nan"), "token_embd.weight .* not numbers"),
        (
            "blk.0.ffn_up.weight",
            lambda x: x[::-1].copy(),
            r"blk.0.ffn_up.weight differs by 1.*rounding to f32 explains",
        ),
    ],
)
def test_other_mistakes_are_named_too(name: str, how: object, words: str, source: Model, exact: Path) -> None:
    """Here the source is changed back to front: what is found is right, what is wanted is `how` of it."""
    found = with_changes(load(exact), changing(name, how))
    check = check_tensors(found, source)
    assert check.status == "failed"
    assert len(check.problems) == 1
    assert re.search(words, check.problems[0]), check.problems
    assert name in check.problems[0]


def test_exchanged_tensors_are_told_where_they_belong(source: Model, exact: Path) -> None:
    artefact = load(exact)
    by_name = {tensor.name: tensor for tensor in artefact.tensors}
    pairs = {"blk.0.ffn_gate.weight": "blk.0.ffn_up.weight", "blk.0.ffn_up.weight": "blk.0.ffn_gate.weight"}

    def exchange(tensor: ModelTensor) -> ModelTensor:
        return dataclasses.replace(tensor, values=by_name[pairs.get(tensor.name, tensor.name)].values)

    check = check_tensors(with_changes(artefact, exchange), source)
    assert sorted(problem.partition(":")[0] for problem in check.problems) == [
        f"what belongs into blk.0.ffn_{which}.weight stands elsewhere" for which in ("gate", "up")
    ]


def test_missing_surplus_and_misshapen_tensors_are_named(source: Model, exact: Path) -> None:
    artefact = load(exact)
    odd = dataclasses.replace(artefact.tensors[3], name="blk.9.odd.weight")
    wide = dataclasses.replace(artefact.tensors[1], shape=(63,))
    check = check_tensors(dataclasses.replace(artefact, tensors=(*artefact.tensors[2:], odd, wide)), source)
    names = (artefact.tensors[0].name, artefact.tensors[1].name)
    assert f"{names[0]} is missing" in check.problems
    assert f"{names[1]} has shape (63,), the source gives (64,)" in check.problems
    assert "blk.9.odd.weight is in the artefact, but the source has nothing for it" in check.problems


def test_progress_ends_at_the_number_of_weights(source: Model, exact: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    check_tensors(load(exact), source, lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2] == sum(tensor.rows * tensor.columns for tensor in source.tensors)

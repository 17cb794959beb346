"""Rounding is never blamed; whatever else stands in a tensor is found, and its place named."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.evaluation import LayerError
from tersor.evaluation.layers.weights import Sums, compare_weights, decibels
from tersor.formats import FORMATS

from .conftest import HEADS, KEY_HEADS, Edit, heavy, held, rounded

STORED = [name for name, form in FORMATS.items() if "gguf" in form.containers]
Q = "blk.0.attn_q.weight"


def compared(found: Float32, wanted: Float32, kind: str = "F32", name: str = Q) -> LayerError:
    (row,) = compare_weights(held({name: found}, kind), held({name: wanted}))
    return row


@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_k"])
def test_the_same_weights_have_no_error_and_no_findings(name: str) -> None:
    values = rounded(heavy(16, 256), name)
    row = compared(values, values, name.upper())
    assert (row.sqnr_db, row.cosine, row.largest, row.findings) == (None, 1.0, 0.0, ())


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("search", ["best", "ggml"])
@pytest.mark.parametrize("important", [False, True])
def test_no_honest_rounding_is_blamed(name: str, search: str, important: bool) -> None:
    generator = np.random.default_rng(5)
    shares = np.exp(generator.normal(0, 1.5, 512)).astype(np.float32) if important else None
    spiky = heavy(48, 512) * np.exp(generator.normal(0, 1.5, 512)).astype(np.float32)
    sparse = heavy(48, 512) * (generator.random((48, 512)) < 0.1).astype(np.float32)
    for values in (heavy(64, 512), spiky, sparse):
        row = compared(rounded(values, name, search=search, importance=shares), values, name.upper())
        assert row.findings == ()


@pytest.mark.parametrize("name", [name for name in STORED if FORMATS[name].family not in ("float", "ternary")])
@pytest.mark.parametrize(
    ("edit", "words"),
    [(lambda x: 2 * x, "scaled by (1.[89]|2)"), (np.negative, "scaled by -"), (np.zeros_like, "zero")],
)
def test_one_bad_block_in_a_large_tensor_is_found_and_located(name: str, edit: Edit, words: str) -> None:
    values = heavy(512, 1024, seed=3)
    found = rounded(values, name)
    clean = compared(found, values, name.upper())
    block = FORMATS[name].block
    found[201, block : 2 * block] = edit(found[201, block : 2 * block])
    row = compared(found, values, name.upper())
    assert clean.findings == ()
    assert row.sqnr_db is not None
    assert clean.sqnr_db is not None
    assert clean.sqnr_db - row.sqnr_db < 1.0 or name in ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0")
    assert any(finding.startswith("row 201, columns ") for finding in row.findings), row.findings
    first = min(int(finding.split()[3]) for finding in row.findings)
    last = max(int(finding.split(":")[0].split()[-1]) for finding in row.findings)
    assert block <= first < last < 2 * block
    if FORMATS[name].block == 32:
        assert row.findings[0].startswith(f"row 201, columns {block} … {2 * block - 1}: ")


def test_a_bad_byte_in_the_scale_of_one_block_is_found() -> None:
    values = heavy(256, 512)
    form = FORMATS["q4_0"]
    data = form.encode(values).copy()
    data[77, 5 * 18 + 1] ^= 0x04  # the exponent of a binary16 scale
    row = compared(form.decode(data, 512), values, "Q4_0")
    assert len(row.findings) == 1
    assert row.findings[0].startswith("row 77, columns 160 … 191: scaled by ")


@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_0", "q4_k", "q2_k"])
def test_exchanged_heads_are_called_by_their_numbers(name: str) -> None:
    for kind, heads in (("attn_q", HEADS), ("attn_k", KEY_HEADS), ("attn_v", KEY_HEADS)):
        values = heavy(16 * heads, 512)
        found = rounded(values, name).reshape(heads, 16, 512)
        found[[1, 3]] = found[[3, 1]]
        row = compared(found.reshape(16 * heads, 512), values, name.upper(), f"blk.2.{kind}.weight")
        assert row.findings == (
            "rows 16 … 31 (head 1) are rows 48 … 63 (head 3) of the source",
            "rows 48 … 63 (head 3) are rows 16 … 31 (head 1) of the source",
        )


@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_0"])
def test_an_exchanged_head_of_the_output_is_found_in_columns(name: str) -> None:
    values = heavy(256, 32 * HEADS)
    found = rounded(values, name)
    found[:, 32:64] = found[:, 160:192]
    row = compared(found, values, name.upper(), "blk.0.attn_output.weight")
    assert row.findings == ("columns 32 … 63 (head 1) are columns 160 … 191 (head 5) of the source",)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda x: np.concatenate([x[:40], x[39:-1]]), "rows 40 … 63 are rows 39 … 62 of the source"),
        (lambda x: np.concatenate([x[:5], x[9:10], x[6:]]), "row 5 is row 9 of the source"),
        (
            lambda x: x * np.where(np.arange(64) == 7, np.float32(3), np.float32(1))[:, None],
            r"row 7 scaled by (3|2\.99\d|3\.00\d)",
        ),
        (lambda x: x * (np.arange(64) != 7).astype(np.float32)[:, None], "row 7 zero, the source is not"),
    ],
)
def test_moved_broken_and_missing_rows_are_named(edit: Edit, words: str) -> None:
    values = heavy(64, 256)
    row = compared(edit(rounded(values, "q8_0")), values, "Q8_0", "blk.0.ffn_up.weight")
    assert len(row.findings) == 1
    assert re.fullmatch(words, row.findings[0])


def test_heads_turned_by_one_are_all_named() -> None:
    values = heavy(16 * HEADS, 512)
    found = np.roll(rounded(values, "q4_0"), 16, axis=0)
    row = compared(found, values, "Q4_0")
    assert row.findings == (
        "rows 0 … 15 (head 0) are rows 112 … 127 (head 7) of the source",
        "rows 16 … 127 (heads 1 … 7) are rows 0 … 111 (heads 0 … 6) of the source",
    )


def test_values_that_are_no_numbers_are_named_with_their_place() -> None:
    values = heavy(32, 256)
    found = values.copy()
    found[9, 17:20] = [np.nan, np.inf, -np.inf]
    row = compared(found, values)
    assert row.findings[0] == "3 values from row 9, column 17 on are not finite"
    assert row.findings[1].startswith("row 9, columns 0 … 31: ")
    assert row.sqnr_db is not None
    assert math.isfinite(row.sqnr_db)


def test_values_beyond_all_measure_are_located_without_a_warning() -> None:
    values = heavy(32, 256)
    found = values.copy()
    found[9, 17] = 3e38
    row = compared(found, values)
    assert len(row.findings) == 1
    assert row.findings[0].startswith("row 9, columns 0 … 31: off by ")
    assert row.sqnr_db == -300


def test_exchanged_tensors_are_told_where_they_belong() -> None:
    arrays = {"blk.0.ffn_gate.weight": heavy(32, 256, 1), "blk.0.ffn_up.weight": heavy(32, 256, 2)}
    gate, up = arrays
    rows = compare_weights(held({gate: arrays[up], up: arrays[gate]}), held(arrays))
    assert [row.findings for row in rows] == [
        (f"what belongs into {up} stands elsewhere",),
        (f"what belongs into {gate} stands elsewhere",),
    ]


def test_missing_misshapen_and_surplus_tensors_are_rows_with_a_finding() -> None:
    a, b, c, d = heavy(4, 32), heavy(4, 32), heavy(4, 64), heavy(4, 32)
    rows = compare_weights(
        held({"a.weight": a, "b.weight": c, "d.weight": d}), held({"a.weight": a, "b.weight": b, "c.weight": b})
    )
    assert {row.name: row.findings for row in rows} == {
        "a.weight": (),
        "b.weight": ("has shape (4, 64), the source gives (4, 32)",),
        "c.weight": ("is missing",),
        "d.weight": ("is in the artefact, but the source has nothing for it",),
    }
    assert rows[1].sqnr_db is None
    assert rows[1].cosine is None


def test_numbers_are_those_of_their_definitions() -> None:
    values = heavy(24, 512)
    found = rounded(values, "q4_0")
    row = compared(found, values, "Q4_0")
    x, y = values.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    assert row.sqnr_db == pytest.approx(10 * math.log10((x @ x) / ((x - y) @ (x - y))), abs=1e-4)
    assert row.cosine == pytest.approx((x @ y) / math.sqrt((x @ x) * (y @ y)), abs=1e-6)
    assert row.largest == pytest.approx(np.abs(x - y).max() / math.sqrt((x @ x) / x.size), rel=1e-5)


def test_decibels_of_nothing() -> None:
    assert decibels(0.0, 1.0) == -300
    assert Sums().sqnr_db is None


def test_experts_are_compared_one_by_one() -> None:
    values = np.stack([heavy(16, 64, seed) for seed in range(3)])
    found = values.copy()
    found[2, 5] *= 2
    row = compared(found, values, name="blk.0.ffn_up_exps.weight")
    assert row.findings == ("row 37 scaled by 2",)


def test_progress_counts_every_weight() -> None:
    calls: list[tuple[str, int, int]] = []
    arrays = {"a.weight": heavy(4, 32), "b.weight": heavy(2, 32)}
    compare_weights(held(arrays), held(arrays), progress=lambda *call: calls.append(call))
    assert calls == [("a.weight", 128, 192), ("b.weight", 192, 192)]


def test_vectors_have_places_without_rows() -> None:
    values = np.linspace(1, 2, 64, dtype=np.float32)
    found = values.copy()
    found[40] = 9
    row = compared(found, values, name="blk.0.attn_norm.weight")
    assert row.findings[0].startswith("columns 32 … 63: ")
    assert dataclasses.asdict(row)["clipped"] is None

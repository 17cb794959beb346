"""Cards: what they say of a run, and that a saved one comes back the same or is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tersor.core.card import Artefact, Card, Seconds, TensorError, size
from tersor.core.errors import FormatError
from tersor.core.plan import Plan, PlannedTensor, Recipe

PLAN = Plan(
    model="tiny",
    architecture="llama",
    recipe=Recipe("q4_k_m", "table-1", ("attn_(k|v)=q8_0",)),
    tensors=(
        PlannedTensor("a.weight", (4, 256), "BF16", "q4_k", "q4_k_m: default", "", 576),
        PlannedTensor("b.weight", (4, 96), "BF16", "q8_0", "override: attn_(k|v)=q8_0", "", 408),
        PlannedTensor("c.weight", (2, 96), "BF16", "q5_0", "fallback: 96 columns do not divide by 256", "q4_k", 132),
        PlannedTensor("a_norm.weight", (256,), "BF16", "f32", "kept f32: norm", "", 1024),
    ),
)
CARD = Card(
    name="tiny",
    plan=PLAN,
    sources={"model.safetensors": "ab" * 32},
    source_bytes=4000,
    artefacts=(
        Artefact("tiny-00001-of-00002.gguf", 1500, "cd" * 32),
        Artefact("tiny-00002-of-00002.gguf", 500, "ef" * 32),
    ),
    errors=(
        TensorError("a.weight", 0.08),
        TensorError("b.weight", 0.006),
        TensorError("c.weight", 0.04),
        TensorError("a_norm.weight", 0.0),
    ),
    seconds=Seconds(0.1, 0.5, 0.05, 0.2, 0.6),
    peak_memory_bytes=100 * 2**20,
    versions={"tersor": "0.1.0", "numpy": "2.0"},
    platform="Linux x86_64, 2 cores",
    command="tersor quantize tiny -o tiny.gguf --format q4_k_m",
    notes=("a remark",),
)


def test_a_saved_card_comes_back_equal() -> None:
    assert Card.from_json(CARD.to_json()) == CARD


def test_totals_are_those_of_the_parts() -> None:
    assert CARD.nbytes == 2000
    assert CARD.ratio == 2.0
    expected = ((1024 * 0.08**2 + 384 * 0.006**2 + 192 * 0.04**2) / (1024 + 384 + 192 + 256)) ** 0.5
    assert CARD.mean_error == pytest.approx(expected)
    summary = json.loads(CARD.to_json())["summary"]
    assert summary["bytes"] == 2000
    assert summary["mean_error"] == pytest.approx(expected)


def test_a_card_without_measurements_says_so() -> None:
    silent = replace(CARD, errors=tuple(TensorError(row.name, None) for row in CARD.errors))
    assert silent.mean_error is None
    assert "error not measured" in silent.to_markdown()
    assert "Largest errors" not in silent.to_markdown()
    assert Card.from_json(silent.to_json()) == silent


def test_the_page_tells_the_whole_story_in_order() -> None:
    page = CARD.to_markdown()
    assert page.startswith("# tiny → q4_k_m\n\n**2.00× smaller**: 3.91 KiB → **1.95 KiB**")
    places = [page.index(part) for part in ("## Formats", "## Largest errors", "## Fallbacks", "## Notes",
                                            "## How it was made", "## Every tensor")]  # fmt: skip
    assert places == sorted(places)
    assert CARD.to_markdown(tensors=False) == page[: page.index("## Every tensor")].rstrip() + "\n"
    assert "| `a.weight` | q4_k | 8.000% |" in page
    assert "| `c.weight` | q4_k | q5_0 | fallback: 96 columns do not divide by 256 |" in page
    assert "tersor quantize tiny -o tiny.gguf --format q4_k_m" in page
    assert "`tiny-00002-of-00002.gguf`: 500 bytes, sha256 `" + "ef" * 32 in page
    assert page.endswith("kept f32: norm |\n")


def test_a_bar_in_a_pattern_does_not_break_the_table() -> None:
    line = next(line for line in CARD.to_markdown().splitlines() if line.startswith("| `b.weight` | 4 × 96"))
    assert r"override: attn_(k\|v)=q8_0 |" in line


def test_a_card_without_fallbacks_says_so() -> None:
    plan = replace(PLAN, tensors=PLAN.tensors[:2])
    page = replace(CARD, plan=plan, errors=CARD.errors[:2], notes=()).to_markdown()
    assert "None: every tensor has the format that was chosen for it." in page
    assert "## Notes" not in page


def test_a_dry_run_is_marked_as_one() -> None:
    page = replace(CARD, dry_run=True, artefacts=(Artefact("tiny.gguf", 2000, ""),)).to_markdown()
    assert "(plan only, nothing written)" in page
    assert "sha256 `not written`" in page
    assert "- time:" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "tersor.card/9"}, r"c: schema 'tersor\.card/9', this version reads 'tersor\.card/1'"),
        ({"source_bytes": "1"}, r"c: source_bytes must be int, got '1'"),
        ({"peak_memory_bytes": "much"}, r"c: peak_memory_bytes must be int \| None, got 'much'"),
        ({"sources": {"a": 1}}, r"c: sources must map text to text"),
        ({"errors": [{"name": "a", "relative": "x"}]}, r"c: errors: relative must be float \| None, got 'x'"),
        ({"plan": {}}, r"c: plan: missing keys"),
        ({"more": 1}, r"c: missing keys \[\], unknown keys \['more'\]"),
    ],
)
def test_a_document_that_is_not_a_card_is_refused_by_name(change: dict[str, object], message: str) -> None:
    text = json.dumps({**json.loads(CARD.to_json()), **change})
    with pytest.raises(FormatError, match=message):
        Card.from_json(text, place="c")


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(FormatError, match=r"c: not a JSON document"):
        Card.from_json("nonsense", place="c")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**30, "1.00 GiB")])
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text

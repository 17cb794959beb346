"""Cards: what they say of a run, and that a saved one comes back the same or is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tersor.core.card import Artefact, Card, Seconds, TensorError, card_path
from tersor.core.errors import FormatError
from tersor.core.evaluation import Benchmark, Evaluation, Histogram, LayerError, Limit, Metric, Sample
from tersor.core.plan import Plan, PlannedTensor, Recipe
from tersor.core.quantities import size

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


ERROR = {"name": "a", "relative": None, "method": "", "output": None, "plain": None, "note": ""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "tersor.card/9"}, r"c: schema 'tersor\.card/9', this version reads 'tersor\.card/2'"),
        ({"source_bytes": "1"}, r"c: source_bytes must be int, got '1'"),
        ({"peak_memory_bytes": "much"}, r"c: peak_memory_bytes must be int \| None, got 'much'"),
        ({"sources": {"a": 1}}, r"c: sources\['a'\] must be str, got 1"),
        ({"errors": [ERROR | {"relative": "x"}]}, r"c: errors\[0\]: relative must be float \| None, got 'x'"),
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


EVALUATION = Evaluation(
    task="language",
    subject="tiny.gguf",
    subject_sha256="cd" * 32,
    reference="tiny",
    data="text.txt",
    data_sha256="12" * 32,
    engines={"subject": "llama.cpp", "reference": "transformers"},
    settings={"window": 512, "is_strict": True, "share": 0.5, "convention": "llama.cpp"},
    metrics=(Metric("kl_mean", 0.0125, "nats", 0.01, 0.015, 12, 1e-9), Metric("kl_max", math.inf, "nats")),
    histograms=(Histogram("kl", (0.0, 0.01, 0.1, math.inf), (60, 38, 2)),),
    samples=(Sample("def close(", "se|lf", "):\n    pass", 1.5, "reference `self` 0.9"),),
    limits=(Limit("kl_mean", 0.01, False, "inconclusive", "kl_mean lies between 0.01 and 0.015", 40),),
    notes=("a note",),
    command="tersor evaluate tiny.gguf --against tiny",
)
LAYERS = (
    LayerError("blk.0.attn_q.weight", "attn_q", 0, 21.5, 0.99, 3.0, None, 30.0, 25.0),
    LayerError("blk.1.attn_q.weight", "attn_q", 1, 9.5, 0.9, 9.0, 0.25, findings=("head 1 is head 3",)),
)
BENCHMARK = Benchmark(
    subject="tiny.gguf",
    subject_sha256="cd" * 32,
    against="f16.gguf",
    engine="llama.cpp",
    machine={"processor": "x", "GB/s": 20.5},
    settings={"threads": 2},
    metrics=(Metric("generation_tokens_per_s", 12.5, "tokens/s", 12.0, 13.0, 5, share=0.8),),
    ratios=(Metric("generation_tokens_per_s", 2.5, "", 2.4, 2.6, 5),),
)
FULL = replace(CARD, evaluations=(EVALUATION,), layers=LAYERS, benchmarks=(BENCHMARK,))


def test_a_card_with_all_that_was_measured_comes_back_equal() -> None:
    assert Card.from_json(FULL.to_json()) == FULL
    assert json.loads(FULL.to_json())["schema"] == "tersor.card/2"


def test_a_card_of_the_first_schema_is_read() -> None:
    document = json.loads(CARD.to_json())
    for name in ("evaluations", "layers", "benchmarks"):
        del document[name]
    document["errors"] = [{"name": row["name"], "relative": row["relative"]} for row in document["errors"]]
    for key in ("method", "calibration"):
        del document["plan"]["recipe"][key]
    document["plan"]["schema"] = "tersor.plan/1"
    found = Card.from_json(json.dumps({**document, "schema": "tersor.card/1"}))
    assert found == CARD
    with pytest.raises(FormatError, match=r"missing keys \['benchmarks', 'evaluations', 'layers'\]"):
        Card.from_json(json.dumps(document))


def test_the_page_shows_what_was_measured() -> None:
    page = FULL.to_markdown()
    order = ("## Quality: language against tiny on text.txt", "| KL divergence, mean |", "## Layers, the worst first")
    places = [page.index(part) for part in (*order, "## Speed in llama.cpp", "## Formats")]
    assert places == sorted(places)
    assert "- ? inconclusive: kl_mean lies between 0.01 and 0.015 (about 40 units would settle it)" in page
    assert "| KL divergence, mean | 0.01250 nats | 0.01000 … 0.01500 nats | 1.000e-9 nats | 12 |" in page
    assert "| KL divergence, largest | ∞ nats | – | – | – |" in page
    assert "over 100 values: 50 % at or below 0.01, 99 % at or below ∞." in page
    assert r"| 1.5 | `…def close(` **`se\|lf`** `):⏎    pass…` | reference `self` 0.9 |" in page
    assert "| `blk.1.attn_q.weight` | 9.5 dB | 0.900000 | 9 rms | 25 % | – | – |" in page
    assert page.index("`blk.1.attn_q.weight`") < page.index("`blk.0.attn_q.weight`")
    assert "- `blk.1.attn_q.weight`: head 1 is head 3" in page
    assert "| generation | 12.50 tokens/s | 12 … 13 tokens/s | 80 % | 5 |" in page


def spoiled(change: dict[str, Any]) -> str:
    document = json.loads(FULL.to_json())
    histogram = document["evaluations"][0]["histograms"][0]
    histogram |= change.pop("histogram", {})
    document["plan"]["tensors"][0] |= change.pop("tensor", {})
    document["artefacts"][0] |= change.pop("artefact", {})
    return json.dumps({**document, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"histogram": {"counts": [1]}}, r"c: evaluations\[0\]: histogram 'kl': 4 edges around 1 counts"),
        ({"histogram": {"counts": [1, -2, 3]}}, r"histogram 'kl': .* counts not be negative"),
        ({"histogram": {"edges": [0, 2, 1, 3]}}, r"edges must rise"),
        ({"histogram": {"edges": [], "counts": []}}, r"0 edges around 0 counts"),
        ({"source_bytes": -1}, r"c: source_bytes: -1 is no count of bytes"),
        ({"artefact": {"nbytes": -5}}, r"c: tiny-00001-of-00002\.gguf: -5 is no count of bytes"),
        ({"tensor": {"shape": [-4]}}, r"c: plan: tensors\[0\]: \(-4,\) is no shape of a tensor"),
        ({"tensor": {"shape": [2**40, 2**40]}}, r"c: plan: tensors\[0\]: .* is no shape of a tensor"),
        ({"tensor": {"shape": [1] * 9}}, r"c: plan: tensors\[0\]: .* is no shape of a tensor"),
        ({"tensor": {"nbytes": -1}}, r"c: plan: tensors\[0\]: -1 is no count of bytes"),
        ({"layers": [{"name": "x"}]}, r"c: layers\[0\]: missing keys"),
    ],
)
def test_numbers_that_no_run_can_have_found_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Card.from_json(spoiled(change), place="c")


def test_all_parts_of_a_split_artefact_share_one_card() -> None:
    assert card_path(Path("a/m-00002-of-00003.gguf"), "html") == Path("a/m.card.html")
    assert card_path(Path("a/m.gguf"), "json") == Path("a/m.card.json")

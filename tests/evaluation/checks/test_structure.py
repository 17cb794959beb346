"""Files that break one rule each, made with the project's own writer, and the sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tersor.containers.gguf import write_gguf
from tersor.core.metadata import MetadataEntry as Entry
from tersor.core.plan import PlannedTensor
from tersor.evaluation.checks.structure import check_card, check_structure

BASE = {
    "general.architecture": Entry("llama", "str"),
    "llama.context_length": Entry(64, "u32"),
    "llama.embedding_length": Entry(8, "u32"),
    "llama.block_count": Entry(1, "u32"),
    "llama.feed_forward_length": Entry(8, "u32"),
    "llama.attention.head_count": Entry(2, "u32"),
    "llama.attention.layer_norm_rms_epsilon": Entry(1e-5, "f32"),
    "tokenizer.ggml.model": Entry("gpt2", "str"),
    "tokenizer.ggml.pre": Entry("gpt-2", "str"),
    "tokenizer.ggml.tokens": Entry(["a", "b", "ab", "c"], "[str]"),
    "tokenizer.ggml.token_type": Entry([1, 1, 1, 1], "[i32]"),
    "tokenizer.ggml.merges": Entry(["a b"], "[str]"),
    "tokenizer.ggml.bos_token_id": Entry(0, "u32"),
}
SHAPES = {"token_embd.weight": (4, 8), "blk.0.attn_q.weight": (8, 8)}


def written(
    path: Path, changes: Mapping[str, Entry | None], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Path:
    entries = {key: entry for key, entry in {**BASE, **changes}.items() if entry is not None}
    rows = [
        PlannedTensor(name, shape, "F32", "f32", "", "", 4 * int(np.prod(shape)))
        for name, shape in (SHAPES if shapes is None else shapes).items()
    ]
    chunks = [(row.name, np.zeros(row.nbytes, np.uint8)) for row in rows]
    write_gguf(path, entries, rows, chunks)
    return path


def test_a_sound_file_passes(tmp_path: Path) -> None:
    check = check_structure(written(tmp_path / "m.gguf", {}))
    assert (check.status, check.problems) == ("passed", ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"llama.context_length": None}, "llama.context_length is missing"),
        ({"llama.feed_forward_length": None}, "llama.feed_forward_length is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.block_count": Entry(2, "u32")}, "block_count is 2, but there is no tensor of block 1"),
        ({"llama.block_count": Entry(0, "u32")}, "block_count is 0, but there are tensors of block 0"),
        ({"llama.attention.head_count": Entry(3, "u32")}, "8 rows; 3 heads of 2 make 6"),
        ({"llama.attention.key_length": Entry(8, "u32")}, "8 rows; 2 heads of 8 make 16"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": Entry(["a", "b", "a", "c"], "[str]")}, "1 tokens appear twice, the first is 'a'"),
        ({"tokenizer.ggml.tokens": Entry(["a", "b", "c"], "[str]")}, "3 tokens, but token_embd.weight has 4 rows"),
        ({"tokenizer.ggml.token_type": Entry([1], "[i32]")}, "token_type has 1 items for 4 tokens"),
        ({"tokenizer.ggml.bos_token_id": Entry(4, "u32")}, "bos token has id 4; ids are 0 to 3"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.model": Entry("llama", "str")}, "scores is missing"),
    ],
)
def test_a_broken_rule_is_named(changes: Mapping[str, Entry | None], words: str, tmp_path: Path) -> None:
    check = check_structure(written(tmp_path / "m.gguf", changes))
    assert check.status == "failed"
    assert any(words in problem for problem in check.problems), check.problems


def test_scores_that_are_all_alike_are_found(tmp_path: Path) -> None:
    """Such a file loads and tokenizes half of all text wrongly."""
    tokens = [f"t{index}" for index in range(400)]
    changes = {
        "tokenizer.ggml.model": Entry("llama", "str"),
        "tokenizer.ggml.tokens": Entry(list(tokens), "[str]"),
        "tokenizer.ggml.token_type": Entry([1] * 400, "[i32]"),
        "tokenizer.ggml.scores": Entry([-1000.0] * 400, "[f32]"),
    }
    shapes = {**SHAPES, "token_embd.weight": (400, 8)}
    check = check_structure(written(tmp_path / "m.gguf", changes, shapes))
    assert [problem.partition(":")[0] for problem in check.problems] == ["all tokens have the same score"]


def test_a_truncated_file_fails_without_being_read_further(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {})
    path.write_bytes(path.read_bytes()[:-100])
    check = check_structure(path)
    assert check.status == "failed"
    assert "truncated" in check.problems[0]


def test_what_is_no_gguf_fails(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"something else")
    assert "not a GGUF file" in check_structure(path).problems[0]


def test_the_card_is_compared_with_the_file(make_gguf: object, exact: Path, tmp_path: Path) -> None:
    assert check_card(exact).status == "passed"
    copy = tmp_path / exact.name
    data = bytearray(exact.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert check_card(copy).status == "skipped"
    card = exact.with_name("f32.card.json").read_text()
    copy.with_name("f32.card.json").write_text(card)
    check = check_card(copy)
    assert check.status == "failed"
    assert "its Card says" in check.problems[0]
    document = json.loads(card) | {"schema": "tersor.card/0"}
    copy.with_name("f32.card.json").write_text(json.dumps(document))
    assert "tersor.card/0" in check_card(copy).problems[0]

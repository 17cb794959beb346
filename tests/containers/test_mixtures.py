"""The mixture table against what real llama.cpp did, and the overrides against what they promise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tersor.containers.mixture_rules import FILE_TYPES, RULES
from tersor.containers.mixtures import ModelFacts, choose, file_type
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.metadata import MetadataEntry
from tersor.formats import FORMATS

GOLDEN = Path(__file__).parent / "golden" / "mixtures.json"
ROWS = 2


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    must_be_f32: bool = False


def golden_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["cases"]
    return cases


def facts_of(case: dict[str, Any]) -> ModelFacts:
    return ModelFacts(case["architecture"], case["layers"], case["heads"], case["kv_heads"], case["experts"])


def tensors_of(case: dict[str, Any], kinds: list[str]) -> list[Tensor]:
    """The tensors of a golden case, in reversed order of layers: the choice must not depend on the order."""
    tensors = []
    for kind in kinds:
        columns = case["feed_forward"] if "ffn_down" in kind else case["hidden"]
        shape = (case["experts"], ROWS, columns) if kind.endswith("_exps") else (ROWS, columns)
        is_router = kind == "ffn_gate_inp"
        if kind in ("token_embd", "output"):
            tensors.append(Tensor(f"{kind}.weight", shape))
        else:
            layers = reversed(range(case["layers"]))
            tensors += [Tensor(f"blk.{layer}.{kind}.weight", shape, is_router) for layer in layers]
    return tensors


def expected_of(lines: dict[str, str]) -> dict[str, str]:
    """Undo the run-length coding of the golden file."""
    expected: dict[str, str] = {}
    for kinds, line in lines.items():
        for kind in kinds.split(","):
            runs = [run.partition("*") for run in line.split()]
            row = [name for name, _, count in runs for _ in range(int(count or 1))]
            names = [f"{kind}.weight"] if "*" not in line else [f"blk.{i}.{kind}.weight" for i in range(len(row))]
            expected |= dict(zip(names, row, strict=True))
    return expected


def our_name(key: str) -> str:
    """The name under which we offer what llama.cpp did for `key`."""
    name = key.removesuffix(" importance")
    return f"{FILE_TYPES[name.removesuffix(' pure')].default}_pure" if name.endswith(" pure") else name


@pytest.mark.parametrize("row", golden_cases(), ids=lambda row: "-".join(str(value) for value in row["case"].values()))
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(row: dict[str, Any]) -> None:
    checked = 0
    for key, lines in row["types"].items():
        if lines is None:  # llama.cpp refuses q2_k_s without importance
            assert key == "q2_k_s"
            continue
        expected = expected_of(lines)
        kinds = [kind for joined in lines for kind in joined.split(",")]
        weighted = key.endswith(" importance")
        choices = choose(our_name(key), tensors_of(row["case"], kinds), facts_of(row["case"]), has_importance=weighted)
        assert {name: choice.format for name, choice in choices.items()} == expected, key
        checked += 1
    assert checked >= 36


def test_the_golden_file_covers_every_rule_of_the_table() -> None:
    """A rule that no case exercises is a rule that nothing checks."""
    used: set[str] = set()
    for row in golden_cases():
        for key, lines in row["types"].items():
            kinds = [kind for joined in lines or () for kind in joined.split(",")]
            weighted = key.endswith(" importance")
            choices = choose(
                our_name(key), tensors_of(row["case"], kinds), facts_of(row["case"]), has_importance=weighted
            )
            used |= {choice.reason for choice in choices.values()}
    missing = [n for n in range(1, len(RULES) + 1) if not any(f"rule {n}," in reason for reason in used)]
    assert missing == []


def test_every_file_type_has_a_number_and_a_format_we_can_write() -> None:
    for kind in FILE_TYPES.values():
        assert "gguf" in FORMATS[kind.default].containers
        assert 0 <= kind.number <= 41


def small_model(layers: int = 4, *, tied: bool = False, columns: int = 256) -> list[Tensor]:
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    blocks = [Tensor(f"blk.{i}.{kind}.weight", (8, columns)) for i in range(layers) for kind in kinds]
    norms = [Tensor(f"blk.{i}.attn_norm.weight", (columns,), True) for i in range(layers)]
    head = [] if tied else [Tensor("output.weight", (8, columns))]
    return [Tensor("token_embd.weight", (8, columns)), *blocks, *norms, *head]


FACTS = ModelFacts("llama", 4, 8, 8)


def test_an_override_takes_its_tensors_and_leaves_the_counters_alone() -> None:
    plain = choose("q4_k_s", small_model(8), ModelFacts("llama", 8, 8, 8))
    special = choose("q4_k_s", small_model(8), ModelFacts("llama", 8, 8, 8), tensor_formats=(r"blk\.0\.attn_v=q8_0",))
    changed = {name for name in plain if plain[name] != special[name]}
    assert changed == {"blk.0.attn_v.weight"}
    assert special["blk.0.attn_v.weight"].format == "q8_0"
    assert special["blk.0.attn_v.weight"].reason == r"override: blk\.0\.attn_v=q8_0"


def test_the_first_matching_override_wins() -> None:
    choices = choose("q4_k_m", small_model(), FACTS, tensor_formats=(r"1\.attn_\S=q8_0", "attn=q6_k"))
    assert choices["blk.1.attn_q.weight"].format == "q8_0"
    assert choices["blk.2.attn_q.weight"].format == "q6_k"


@pytest.mark.parametrize("tied", [True, False])
def test_output_and_embedding_formats_find_their_tensors(tied: bool) -> None:
    both = choose("q4_k_m", small_model(tied=tied), FACTS, output_format="q8_0", embedding_format="Q5_K")
    assert both["token_embd.weight"].format == "q5_k"
    output_only = choose("q4_k_m", small_model(tied=tied), FACTS, output_format="q8_0")
    assert output_only["token_embd.weight" if tied else "output.weight"].format == "q8_0"
    if not tied:
        assert output_only["token_embd.weight"].format == "q4_k"


def test_a_fallback_is_named_with_its_reason() -> None:
    choice = choose("q4_k_m", small_model(columns=96), FACTS)["blk.0.attn_q.weight"]
    assert (choice.format, choice.wanted) == ("q5_0", "q4_k")
    assert choice.reason.startswith("fallback: 96 columns do not divide by 256 (q4_k, ")


def test_an_override_that_does_not_fit_falls_back_too() -> None:
    choices = choose("q8_0", small_model(columns=172), FACTS, tensor_formats=("attn_q=q6_k",))
    assert {choices[f"blk.0.{kind}.weight"].format for kind in ("attn_q", "ffn_up")} == {"f16"}


def test_without_fallback_all_misfits_are_named() -> None:
    tensors = [Tensor("token_embd.weight", (8, 256)), Tensor("blk.0.attn_q.weight", (8, 96)),
               Tensor("blk.0.ffn_down.weight", (8, 172))]  # fmt: skip
    with pytest.raises(ShapeError, match=r"2 tensors .*blk\.0\.attn_q\.weight.*96.*blk\.0\.ffn_down\.weight.*172"):
        choose("q4_k_m", tensors, FACTS, fallback=False)


def test_norms_biases_and_single_rows_stay_f32() -> None:
    tensors = [*small_model(1), Tensor("blk.0.attn_q.bias", (256,), True), Tensor("blk.0.odd.weight", (1, 256))]
    choices = choose("q4_0", tensors, ModelFacts("llama", 1))
    kept = {name: choice.reason for name, choice in choices.items() if choice.format == "f32"}
    assert kept == {
        "blk.0.attn_norm.weight": "kept f32: norm",
        "blk.0.attn_q.bias": "kept f32: bias",
        "blk.0.odd.weight": "kept f32: not a matrix",
    }


@pytest.mark.parametrize("name", ["q3_k", "q4_k", "q5_k", "mxfp4", "q2_k_pure", "q6_k_pure"])
def test_a_pure_type_gives_every_matrix_one_format(name: str) -> None:
    choices = choose(name, small_model(16), ModelFacts("llama", 16, 8, 1))
    assert {choice.format for choice in choices.values()} == {name.removesuffix("_pure"), "f32"}
    assert choices["output.weight"].reason == f"{name}: pure"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q4_k_x", r"no file type is called 'q4_k_x'; did you mean q4_k"),
        ("zebra", r"no file type is called 'zebra'; known are f32, "),
        ("nf4", r"no llama\.cpp file type holds 'nf4' matrices"),
        ("nvfp4", r"no llama\.cpp file type holds 'nvfp4' matrices"),
    ],
)
def test_an_unknown_file_type_is_refused_with_near_names(name: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        file_type(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_v", r"'attn_v' is not PATTERN=FORMAT"),
        ("=q8_0", r"'=q8_0' is not PATTERN=FORMAT"),
        ("attn_(=q8_0", r"'attn_\(' is not a regular expression"),
        ("attn_v=q8_9", r"a GGUF cannot hold weights in 'q8_9'; did you mean q8_0"),
        ("attn_v=nf4", r"a GGUF cannot hold weights in 'nf4'"),
        ("attn_v=nvfp4", r"a GGUF cannot hold weights in 'nvfp4'"),
        ("atn_v=q8_0", r"the pattern 'atn_v' matches no matrix of this model; near it are .*attn_v"),
        ("attn_norm=q8_0", r"the pattern 'attn_norm' matches no matrix"),
    ],
)
def test_a_bad_override_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        choose("q4_k_m", small_model(), FACTS, tensor_formats=(text,))


def test_facts_are_read_from_the_keys_of_the_architecture() -> None:
    metadata = {
        "qwen3.block_count": MetadataEntry(12, "u32"),
        "qwen3.attention.head_count": MetadataEntry([16, 8], "[u32]"),
        "qwen3.expert_count": MetadataEntry(4, "u32"),
    }
    assert ModelFacts.from_metadata("qwen3", metadata) == ModelFacts("qwen3", 12, 16, 16, 4)

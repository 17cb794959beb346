"""The mixtures of llama.cpp as data: which format each file type gives to which tensors.

A file type such as `q4_k_m` names a default format and some exceptions. The exceptions are the rows of `RULES`,
applied from top to bottom: every row that matches replaces the choice so far. They reproduce
what llama.cpp does (release in `TABLE_VERSION`), as recorded in tests/containers/golden/mixtures.json; a later
release with other rules becomes a second table beside this one, never an edit of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["FILE_TYPES", "RULES", "TABLE_VERSION", "FileType", "Layers", "Role", "Rule"]

TABLE_VERSION = "llama.cpp-0c1e57098"
"""The commit of llama.cpp whose choices this table holds; written into Card and metadata."""

Role: TypeAlias = Literal[
    "token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "other"
]
"""What a matrix is for. A fused `attn_qkv` counts as `attn_v`; a tied embedding counts as `output`."""

Layers: TypeAlias = Literal["all", "first 2", "first 4", "first sixteenth", "first eighth", "more bits"]
"""Which layers a rule covers; "more bits" is the first and last eighth, and every third layer between."""


@dataclass(frozen=True, slots=True)
class FileType:
    """One name a user can ask for.

    number   general.file_type, as llama.cpp numbers it
    default  the format of every matrix that no rule covers
    pure     no rules: every matrix gets the default
    """

    name: str
    number: int
    default: str
    pure: bool = False
    wants_importance: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One exception: matrices of `roles` in files of `file_types` (empty: of all) get `format`, where all else holds.

    grouped         at least 4 query heads share a key head
    eight_experts   the model has exactly 8 experts (True), or any other number (False)
    importance      an importance matrix is given (True) or not (False)
    large_grouped   80 layers with grouped attention, the shape of Llama-2-70B
    misfit          the columns do not divide by the block of the default format
    stacked         experts stacked in three dimensions
    replaces        only where the choice so far is one of these
    """

    roles: tuple[Role, ...]
    format: str
    file_types: tuple[str, ...] = ()
    layers: Layers = "all"
    grouped: bool | None = None
    eight_experts: bool | None = None
    importance: bool | None = None
    large_grouped: bool | None = None
    misfit: bool | None = None
    stacked: bool | None = None
    replaces: tuple[str, ...] = ()


def _file_types() -> dict[str, FileType]:
    rows = [
        FileType("f32", 0, "f32", pure=True),
        FileType("f16", 1, "f16", pure=True),
        FileType("bf16", 32, "bf16", pure=True),
        FileType("q8_0", 7, "q8_0"),
        FileType("q4_0", 2, "q4_0"),
        FileType("q4_1", 3, "q4_1"),
        FileType("q5_0", 8, "q5_0"),
        FileType("q5_1", 9, "q5_1"),
        FileType("q2_k", 10, "q2_k"),
        FileType("q2_k_s", 21, "q2_k", wants_importance=True),
        FileType("q3_k_s", 11, "q3_k"),
        FileType("q3_k_m", 12, "q3_k"),
        FileType("q3_k_l", 13, "q3_k"),
        FileType("q4_k_s", 14, "q4_k"),
        FileType("q4_k_m", 15, "q4_k"),
        FileType("q5_k_s", 16, "q5_k"),
        FileType("q5_k_m", 17, "q5_k"),
        FileType("q6_k", 18, "q6_k"),
        FileType("iq4_nl", 25, "iq4_nl"),
        FileType("iq4_xs", 30, "iq4_xs"),
        FileType("tq1_0", 36, "tq1_0"),
        FileType("tq2_0", 37, "tq2_0"),
        FileType("mxfp4_moe", 38, "mxfp4"),
    ]
    table = {row.name: row for row in rows}
    for row in rows:
        if row.default not in ("f32", "f16", "bf16"):
            pure = FileType(f"{row.default}_pure", row.number, row.default, pure=True)
            table.setdefault(pure.name, pure)
            table.setdefault(row.default, FileType(row.default, row.number, row.default, pure=True))
    return table


FILE_TYPES: Mapping[str, FileType] = _file_types()
"""Every name that `--format` takes for a GGUF. A bare format name that llama.cpp gives no mixture to (`q3_k`, `q4_k`,
`q5_k`, `mxfp4`) is pure, and `NAME_pure` is so for every quantized format."""

_ANY_OUTPUT: tuple[Role, ...] = ("output",)

RULES: tuple[Rule, ...] = (
    # The output matrix, or the embedding that stands in for it.
    Rule(_ANY_OUTPUT, "q6_k", replaces=(
        "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0",
    )),
    Rule(_ANY_OUTPUT, "q8_0", misfit=True),
    Rule(_ANY_OUTPUT, "q8_0", ("mxfp4_moe",)),
    # An embedding of its own.
    Rule(("token_embd",), "q4_k", ("tq1_0", "tq2_0")),
    # All but the stacked experts, in the file type made for experts.
    Rule(("token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "other"),
         "q8_0", ("mxfp4_moe",), stacked=False),
    # Values, the most sensitive projection.
    Rule(("attn_v",), "q3_k", ("q2_k",)),
    Rule(("attn_v",), "q4_k", ("q2_k", "q2_k_s"), grouped=True),
    Rule(("attn_v",), "q4_k", ("q3_k_m",)),
    Rule(("attn_v",), "q5_k", ("q3_k_m",), "first 2"),
    Rule(("attn_v",), "q5_k", ("q3_k_l",)),
    Rule(("attn_v",), "q5_k", ("q4_k_s",), "first 4"),
    Rule(("attn_v",), "q6_k", ("q4_k_m", "q5_k_m"), "more bits"),
    Rule(("attn_v",), "q5_k", ("iq4_nl", "iq4_xs"), grouped=True),
    Rule(("attn_v",), "q5_k", large_grouped=True, replaces=("q3_k", "q4_k")),
    Rule(("attn_v", "attn_k"), "q8_0", (
        "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m",
        "q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0",
    ), eight_experts=True),
    # The way down, out of the feed-forward block.
    Rule(("ffn_down",), "q3_k", ("q2_k",)),
    Rule(("ffn_down",), "q4_k", ("q2_k_s",), "first eighth"),
    Rule(("ffn_down",), "q4_k", ("q3_k_m",)),
    Rule(("ffn_down",), "q5_k", ("q3_k_m",), "first sixteenth"),
    Rule(("ffn_down",), "q5_k", ("q3_k_l",)),
    Rule(("ffn_down",), "q5_k", ("q4_k_s",), "first eighth"),
    Rule(("ffn_down",), "q6_k", ("q4_k_m", "q5_k_m"), "more bits"),
    Rule(("ffn_down",), "q5_k", ("iq4_nl", "iq4_xs"), "first eighth", importance=False),
    Rule(("ffn_down",), "q4_1", ("q4_0",), "first eighth", importance=True),
    Rule(("ffn_down",), "q5_1", ("q5_0",), "first eighth", importance=True),
    # The way out of attention.
    Rule(("attn_output",), "q3_k", ("q2_k",), eight_experts=False),
    Rule(("attn_output",), "q4_k", ("q3_k_m",), eight_experts=False),
    Rule(("attn_output",), "q5_k", ("q3_k_l",), eight_experts=False),
    Rule(("attn_output",), "q5_k",
         ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"), eight_experts=True),
)  # fmt: skip

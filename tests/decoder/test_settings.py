"""Metadata that the forward pass cannot follow is refused by name; what is left out means what the engine assumes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tersor.core.errors import FormatError, ShapeError, TersorError, UnsupportedError
from tersor.core.metadata import MetadataEntry, MetadataKind
from tersor.decoder import Decoder
from tersor.decoder.families import FAMILIES
from tersor.decoder.settings import read_settings
from tersor.models import Model, load
from tersor.models.architectures import ARCHITECTURES

QWEN, GEMMA2 = "qwen3", "gemma2: window of 9, own attention scale"
GEMMA3 = "gemma3: window of 9, own attention scale, stretched global rope"


def changed(model: Model, key: str, value: Any, kind: MetadataKind = "u32") -> Model:
    return dataclasses.replace(
        model, metadata=model.metadata | {f"{model.architecture}.{key}": MetadataEntry(value, kind)}
    )


def without(model: Model, *keys: str) -> Model:
    left_out = {f"{model.architecture}.{key}" for key in keys}
    return dataclasses.replace(
        model, metadata={key: entry for key, entry in model.metadata.items() if key not in left_out}
    )


def test_every_architecture_row_has_a_forward_pass() -> None:
    assert set(FAMILIES) == {row.name for row in ARCHITECTURES}


@pytest.mark.parametrize(
    ("key", "value", "kind", "error", "message"),
    [
        ("attention.clamp_kqv", 8.0, "f32", UnsupportedError, "clamp_kqv = 8.0 is not known to the forward pass"),
        ("block_count", 0, "u32", FormatError, "qwen3.block_count must be a count, got 0"),
        ("block_count", 2**31 - 1, "u32", FormatError, "2147483647 blocks, but only"),
        ("embedding_length", "96", "str", FormatError, "embedding_length must be a count, got '96'"),
        ("attention.head_count_kv", [2, 1, 2], "[u32]", FormatError, "head_count_kv must be a count"),
        ("attention.head_count_kv", 4, "u32", UnsupportedError, "6 heads, 4 of keys"),
        ("attention.layer_norm_rms_epsilon", float("inf"), "f32", FormatError, "must be a number from 0, got inf"),
        ("rope.freq_base", 0.0, "f32", FormatError, "freq_base must be positive"),
        ("rope.dimension_count", 18, "u32", UnsupportedError, "18 of 20 elements of a head turn"),
        ("rope.scaling.type", "longrope", "str", UnsupportedError, "there are default, linear, yarn"),
        ("expert_used_count", 2, "u32", FormatError, "2 experts for each token of 0"),
        (
            "feed_forward_length",
            96,
            "u32",
            ShapeError,
            r"ffn_gate.weight is \(160, 96\); the metadata makes it \(96, 96\)",
        ),
    ],
)
def test_metadata_that_cannot_be_followed_is_refused(
    *, tiny: Any, key: str, value: Any, kind: MetadataKind, error: type[TersorError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Decoder(changed(load(tiny(QWEN).folder), key, value, kind))


def test_an_architecture_without_a_row_is_refused(tiny: Any) -> None:
    with pytest.raises(UnsupportedError, match="no forward pass for 'mamba'; there are llama, qwen2"):
        Decoder(dataclasses.replace(load(tiny(QWEN).folder), architecture="mamba"))


def test_one_number_repeated_for_every_block_is_that_number(tiny: Any) -> None:
    model = load(tiny(QWEN).folder)
    assert read_settings(changed(model, "attention.head_count_kv", [2, 2, 2], "[u32]")) == read_settings(model)


def test_a_missing_tensor_is_named(tiny: Any) -> None:
    model = load(tiny(QWEN).folder)
    left = tuple(tensor for tensor in model.tensors if "ffn_down" not in tensor.name)
    with pytest.raises(FormatError, match=r"3 tensors are missing, the first is blk\.0\.ffn_down\.weight"):
        Decoder(dataclasses.replace(model, tensors=left))


def test_a_tensor_that_the_forward_pass_would_ignore_is_refused(tiny: Any) -> None:
    model = load(tiny(QWEN).folder)
    odd = dataclasses.replace(model.tensors[-1], name="blk.0.attn_sinks.weight")
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_sinks\.weight .* has no place in qwen3 with 3 blocks"):
        Decoder(dataclasses.replace(model, tensors=(*model.tensors, odd)))


def test_a_tensor_that_is_there_twice_is_refused(tiny: Any) -> None:
    model = load(tiny(QWEN).folder)
    with pytest.raises(FormatError, match="is there twice"):
        Decoder(dataclasses.replace(model, tensors=(*model.tensors, model.tensors[-1])))


def test_windows_follow_flags_or_a_period_or_the_row(tiny: Any) -> None:
    model = load(tiny(GEMMA3).folder)
    assert read_settings(model).windows == (9, 9, 9, 9, 9, None, 9)
    by_two = changed(model, "attention.sliding_window_pattern", 2)
    assert read_settings(by_two).windows == (9, None, 9, None, 9, None, 9)
    flags = [True, False, False, True, True, True, False]
    by_flags = changed(model, "attention.sliding_window_pattern", flags, "[bool]")
    assert read_settings(by_flags).windows == (9, None, None, 9, 9, 9, None)
    with pytest.raises(FormatError, match="sliding_window_pattern must hold 7 flags"):
        read_settings(changed(model, "attention.sliding_window_pattern", [True], "[bool]"))
    assert read_settings(without(model, "attention.sliding_window")).windows == (None,) * 7


def test_what_a_gemma_2_leaves_out_is_what_the_engine_assumes(tiny: Any) -> None:
    model = load(tiny(GEMMA2).folder)
    keys = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
    settings = read_settings(without(model, *keys))
    assert (settings.windows[:2], settings.score_cap, settings.logit_cap) == ((4096, None), 50.0, 30.0)


def test_the_largest_gemmas_scale_scores_by_hidden_over_heads(tiny: Any) -> None:
    model = load(tiny(GEMMA2).folder)
    assert read_settings(model).scale == pytest.approx(20**-0.5)
    assert read_settings(changed(model, "block_count", 46)).scale == pytest.approx((96 // 6) ** -0.5)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, UnsupportedError
from tersor.models.config import Config
from tersor.models.rope import Rope, factor_tensors, read_rope, rope_metadata

ALL = ("default", "linear", "llama3", "yarn", "longrope")
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def read(values: dict[str, Any], kinds: tuple[str, ...] = ALL, *, partial: bool = False) -> Rope:
    return read_rope(Config(values, {}, "config.json"), 64, 131_072, kinds, partial=partial)


def keys(rope: Rope) -> dict[str, object]:
    return {key.removeprefix("llama.rope."): entry.value for key, entry in rope_metadata(rope, "llama").items()}


def test_both_layouts_of_config_json_mean_the_same() -> None:
    old = read({"rope_theta": 500_000.0, "rope_scaling": LLAMA3})
    new = read({"rope_parameters": {**LLAMA3, "rope_theta": 500_000.0}})
    assert keys(old) == keys(new) == {"dimension_count": 64, "freq_base": 500_000.0}
    first, second = (factor_tensors(rope)["rope_freqs.weight"] for rope in (old, new))
    np.testing.assert_array_equal(first, second)


def test_both_layouts_together_are_read_when_they_agree() -> None:
    both = read({"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert both == read({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}})


def test_the_oldest_layout_says_type_instead_of_rope_type() -> None:
    rope = read({"rope_scaling": {"type": "linear", "factor": 4.0}})
    assert keys(rope) == {
        "dimension_count": 64,
        "freq_base": 10_000.0,
        "scaling.type": "linear",
        "scaling.factor": 4.0,
    }


def test_llama3_factors_divide_frequencies_as_transformers_does() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rope = read({"rope_parameters": {**LLAMA3, "rope_theta": 500_000.0}})
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        max_position_embeddings=131_072,
        rope_parameters={**LLAMA3, "rope_theta": 500_000.0},
    )
    expected, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / factor_tensors(rope)["rope_freqs.weight"], expected.numpy(), rtol=2e-6)


def test_gemma_has_a_second_base_for_its_sliding_layers_in_both_layouts() -> None:
    new = read(
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        }
    )
    old = read({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert keys(new) == keys(old)
    assert keys(new)["freq_base_swa"] == 1e4


def test_yarn_states_only_the_factor_beyond_the_engines_own() -> None:
    plain = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    usual = 0.1 * np.log(4.0) + 1
    assert "scaling.attn_factor" not in keys(read({"rope_scaling": plain}))
    stated = keys(read({"rope_scaling": {**plain, "attention_factor": 2 * usual}}))
    assert stated["scaling.attn_factor"] == pytest.approx(2.0)
    assert stated["scaling.original_context_length"] == 32_768


def test_longrope_gives_two_factor_tensors_and_a_factor_for_the_stretch() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 24, "long_factor": [2.0] * 24}
    values = {"rope_scaling": scaling, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75}
    rope = read(values, partial=True)
    assert rope.dimensions == 48
    assert keys(rope)["scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(32) / np.log(4096)))
    assert {name: values.shape for name, values in factor_tensors(rope).items()} == {
        "rope_factors_long.weight": (24,),
        "rope_factors_short.weight": (24,),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope type 'mrope' is not supported"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}},
            "parameter twist of type linear is not known",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}}, "beta_fast = 16; llama.cpp uses 32"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope type 'yarn' is not supported"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling and rope_parameters differ in factor",
        ),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "rope_scaling": LLAMA3, "rope_theta": 1e4},
            r"differ in rope_theta \(10000.0 and 500000.0\)",
        ),
    ],
)
def test_what_gguf_cannot_say_stops_the_run_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_theta": -1.0}, "rope_theta must be positive"),
        ({"rope_theta": "big"}, "rope_theta must be a number"),
        ({"original_max_position_embeddings": 0.5}, "original_max_position_embeddings must be 1 or more, got 0.5"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention must be an object"),
    ],
)
def test_broken_values_are_format_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "linear"}}, "the rope parameter factor must be a number, got None"),
        ({"rope_scaling": {"type": "yarn", "factor": "x"}}, "the rope parameter factor must be a number, got 'x'"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": -1.0}}, "the rope parameter low_freq_factor must be positive"),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "rope type llama3: low_freq_factor and high_freq_factor",
        ),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rope type longrope: long_factor must list 32"),
        ({"rope_scaling": {"type": "longrope", "long_factor": ["a"] * 32}}, "long_factor must be a number, got 'a'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": "x"}}, "beta_fast must be a number, got 'x'"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor must be a number, got 'half'"),
    ],
)
def test_errors_name_the_file(values: dict[str, Any], message: str) -> None:
    def whole() -> object:
        rope = read(values)
        return keys(rope), factor_tensors(rope)

    with pytest.raises(FormatError, match=f"^config.json: {message}"):
        whole()


def test_a_factor_list_of_the_wrong_length_is_refused() -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 31, "long_factor": [1.0] * 32}
    with pytest.raises(FormatError, match="short_factor must list 32 factors, it has 31"):
        factor_tensors(read({"rope_scaling": scaling}))

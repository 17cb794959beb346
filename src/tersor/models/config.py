"""config.json, read strictly: every value is checked, and every key is either used, known to be neutral, or refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from tersor.core.errors import FormatError, UnsupportedError

__all__ = ["NEUTRAL_KEYS", "Config"]

_MAX_COUNT = 2**31 - 1
_SMALLEST = 1e-30
_ALIASES = {"num_local_experts": "num_experts"}  # transformers 5 saves the one for models that had the other

NEUTRAL_KEYS = frozenset({
    "architectures", "attention_dropout", "auto_map", "bad_words_ids", "begin_suppress_tokens", "boi_token_id",
    "boi_token_index", "bos_token_id", "cache_implementation", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "embd_pdrop", "encoder_no_repeat_ngram_size", "eoi_token_id", "eoi_token_index",
    "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "hidden_dropout", "id2label", "image_token_id", "image_token_index",
    "initializer_range", "label2id", "length_penalty", "max_length", "max_window_layers", "min_length",
    "mm_tokens_per_image", "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_router_logits",
    "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict", "return_dict_in_generate",
    "router_aux_loss_coef", "router_jitter_noise", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
    "use_mambapy", "vision_config",
})  # fmt: skip
"""Keys that change nothing an engine computes for text: training, generation, and records of the saving tool."""


class Config:
    """The values of a config.json; each getter checks one, and remembers that it was used.

    Raises FormatError for a value of the wrong kind, UnsupportedError for a switch that no table row covers.
    """

    def __init__(self, values: Mapping[str, object], defaults: Mapping[str, object], place: str) -> None:
        self.place = place
        stated = {_ALIASES.get(key, key): value for key, value in values.items() if value is not None}
        self._values = {**defaults, **stated}
        self._used: set[str] = set()

    def get(self, key: str) -> object:
        """Return the raw value or None."""
        self._used.add(key)
        return self._values.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_COUNT:
            raise FormatError(f"{self.place}: {key} must be a whole number from 1 to {_MAX_COUNT}, got {value!r:.60}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        return positive(value, f"{self.place}: {key}")

    def text(self, key: str) -> str | None:
        """Return text, or None when the key is absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise FormatError(f"{self.place}: {key} must be text, got {value!r:.60}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise FormatError(f"{self.place}: {key} must be true or false, got {value!r:.60}")
        return value

    def mapping(self, key: str) -> dict[str, object]:
        """Return an object, empty when the key is absent."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise FormatError(f"{self.place}: {key} must be an object, got {value!r:.60}")
        return value

    def refuse_unknown(self, ignore: Collection[str] = ()) -> None:
        """Stop at the first key that nothing used, unless it is neutral or switched off (null, false, empty)."""
        for key, value in self._values.items():
            known = key in self._used or key in NEUTRAL_KEYS or key in ignore or key.startswith("_")
            if not known and value not in (None, False, "", [], {}):
                raise UnsupportedError(
                    f"{self.place}: {key} = {value!r:.60} is not known to leave the model's mathematics alone. "
                    f"If it does: --ignore-config {key}, in Python ignore_config=({key!r},)"
                )


def positive(value: object, what: str) -> float:
    """Return a positive finite number; FormatError with `what` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"{what} must be a number, got {value!r:.60}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not _SMALLEST <= number <= 1 / _SMALLEST:
        raise FormatError(f"{what} must be positive and finite, got {value!r:.60}")
    return number

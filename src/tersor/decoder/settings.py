"""From the metadata of a model to the numbers that its forward pass needs, each checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tersor.core.errors import FormatError, UnsupportedError
from tersor.core.metadata import MetadataEntry
from tersor.decoder.families import FAMILIES, Family
from tersor.models.architectures import ARCHITECTURES, Architecture
from tersor.models.model import Model

__all__ = ["RopeSettings", "Settings", "read_settings"]

_MAX_COUNT = 2**31
_NEUTRAL = ("context_length", "vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "attention.sliding_window")
"""Keys that change nothing here; `attention.sliding_window` is read where layers slide, and idle elsewhere."""


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """How positions turn queries and keys.

    dimensions        of each head that are turned
    base              of the frequencies; `local_base` that of sliding layers, None where it is the same
    stretch           what positions are divided by, 1 for none; not in sliding layers with a base of their own
    is_yarn           whether only long waves are stretched: `betas` are the turns in `original` positions at its bounds
    original          positions before stretching: longer texts take the long factors where there are two sets
    attention_factor  what cos and sin are multiplied by
    """

    dimensions: int
    base: float
    local_base: float | None
    stretch: float
    is_yarn: bool
    original: int
    attention_factor: float
    betas: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a forward pass needs to know.

    row, family    of the architecture: its tensors; what the engine computes
    axes           sizes by the names that the tensor rules use
    heads          of queries, `key_heads` of keys and values, `head` elements in each
    experts_used   for each token; 0 without experts
    epsilon        of the norms
    scale          of attention scores
    score_cap      soft cap of attention scores or None; `logit_cap` that of logits
    windows        for each block how many last tokens it attends to, or None for all
    """

    row: Architecture
    family: Family
    axes: dict[str, int]
    layers: int
    heads: int
    key_heads: int
    head: int
    experts_used: int
    epsilon: float
    scale: float
    score_cap: float | None
    logit_cap: float | None
    windows: tuple[int | None, ...]
    rope: RopeSettings


def read_settings(model: Model) -> Settings:
    """Return the settings; UnsupportedError for an architecture or key without a row, FormatError for bad values."""
    family = FAMILIES.get(model.architecture)
    if family is None:
        raise UnsupportedError(
            f"{model.name}: no forward pass for {model.architecture!r:.40}; there are {', '.join(FAMILIES)}"
        )
    keys = _Keys(model.metadata, model.architecture, model.name)
    experts = keys.count("expert_count", 0)
    row = _row(model.architecture, has_experts=experts > 0)
    layers, hidden, heads = (
        keys.count("block_count"),
        keys.count("embedding_length"),
        keys.count("attention.head_count"),
    )
    if layers > len(model.tensors):
        raise FormatError(f"{model.name}: {layers} blocks, but only {len(model.tensors)} tensors")
    key_heads = keys.count("attention.head_count_kv", heads)
    head = keys.count("attention.key_length", max(hidden // heads, 1))
    if heads % key_heads or keys.count("attention.value_length", head) != head:
        raise UnsupportedError(
            f"{model.name}: {heads} heads, {key_heads} of keys; keys and values must be of one length"
        )
    settings = Settings(
        row=row,
        family=family,
        axes=_axes(keys, model, heads * head, key_heads * head) | {"hidden": hidden, "head": head},
        layers=layers,
        heads=heads,
        key_heads=key_heads,
        head=head,
        experts_used=_experts_used(keys, experts),
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        scale=((hidden // heads if layers == row.engine_scale else head) or 1) ** -0.5,
        score_cap=keys.number("attn_logit_softcapping", family.score_cap) if family.score_cap else None,
        logit_cap=keys.number("final_logit_softcapping", family.logit_cap or 0.0) or None,
        windows=_windows(keys, row, family, layers),
        rope=_rope(keys, row, family, head),
    )
    keys.refuse_unknown()
    return settings


class _Keys:
    """The `{architecture}.*` keys, typed, and which of them were used."""

    def __init__(self, metadata: Mapping[str, MetadataEntry], architecture: str, place: str) -> None:
        self._prefix, self.place = architecture + ".", place
        self._values = {
            key.removeprefix(self._prefix): entry.value
            for key, entry in metadata.items()
            if key.startswith(self._prefix)
        }
        self._used: set[str] = set(_NEUTRAL)

    def get(self, name: str) -> object:
        """Return the value or None; of a list that repeats one number, the number."""
        self._used.add(name)
        value = self._values.get(name)
        if isinstance(value, list) and value and not isinstance(value[0], bool) and len(set(value)) == 1:
            return value[0]
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number from 1; `default` where the key is absent."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        lowest = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value < _MAX_COUNT:
            raise FormatError(f"{self.place}: {self._prefix}{name} must be a count, got {value!r:.60}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number that is not negative; `default` where the key is absent."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise FormatError(f"{self.place}: {self._prefix}{name} must be a number from 0, got {value!r:.60}")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """Return a number above 0."""
        value = self.number(name, default)
        if value <= 0:
            raise FormatError(f"{self.place}: {self._prefix}{name} must be positive, got {value}")
        return value

    def refuse_unknown(self) -> None:
        """Stop at the first key that nothing used: it may change what the model computes."""
        left = sorted(self._values.keys() - self._used)
        if left:
            value = self._values[left[0]]
            raise UnsupportedError(
                f"{self.place}: {self._prefix}{left[0]} = {value!r:.60} is not known to the forward pass"
            )


def _row(architecture: str, *, has_experts: bool) -> Architecture:
    """Return the row of the name with or without experts; where there is but one, that."""
    rows = [row for row in ARCHITECTURES if row.name == architecture]
    fitting = [row for row in rows if any("ffn_gate_inp" in rule.name for rule in row.rules) == has_experts]
    return (fitting or rows)[0]


def _axes(keys: _Keys, model: Model, query: int, key: int) -> dict[str, int]:
    inner = keys.count("feed_forward_length")
    vocabulary = next((tensor.rows for tensor in model.tensors if tensor.name == "token_embd.weight"), 0)
    if not vocabulary:
        raise FormatError(f"{model.name}: the tensor token_embd.weight is missing")
    return {
        "vocabulary": vocabulary,
        "query": query,
        "key": key,
        "query_key_value": query + 2 * key,
        "inner": inner,
        "twice_inner": 2 * inner,
        "experts": keys.count("expert_count", 0),
        "expert": keys.count("expert_feed_forward_length", inner),
    }


def _experts_used(keys: _Keys, experts: int) -> int:
    used = keys.count("expert_used_count", 0)
    if used > experts or (experts and not used):
        raise FormatError(f"{keys.place}: {used} experts for each token of {experts}")
    return used


def _windows(keys: _Keys, row: Architecture, family: Family, layers: int) -> tuple[int | None, ...]:
    """Return the window of each block: by a flag for each, by a period, or by the period of the row."""
    if row.window == "none":
        return (None,) * layers
    window = keys.count("attention.sliding_window", family.window or 0)
    pattern = keys.get("attention.sliding_window_pattern")
    if not window:
        return (None,) * layers
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(isinstance(flag, bool) for flag in pattern):
            raise FormatError(f"{keys.place}: sliding_window_pattern must hold {layers} flags, got {pattern!r:.80}")
        return tuple(window if flag else None for flag in pattern)
    period = row.window if pattern is None else keys.count("attention.sliding_window_pattern")
    return tuple(None if (layer + 1) % period == 0 else window for layer in range(layers))


def _rope(keys: _Keys, row: Architecture, family: Family, head: int) -> RopeSettings:
    dimensions = keys.count("rope.dimension_count", head)
    if dimensions > head or dimensions % 2 or (dimensions != head and not row.partial_rope):
        raise UnsupportedError(f"{keys.place}: {dimensions} of {head} elements of a head turn")
    kind = keys.get("rope.scaling.type") or "linear"
    stretch = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    plain = kind == "none" or (kind == "linear" and stretch == 1)
    if kind not in row.rope_kinds and not plain:
        raise UnsupportedError(f"{keys.place}: rope.scaling.type {kind!r:.40}; there are {', '.join(row.rope_kinds)}")
    factor = keys.positive("rope.scaling.attn_factor", 1.0)
    if kind == "yarn" and stretch > 1:
        factor *= 1 + 0.1 * math.log(stretch)
    base = keys.positive("rope.freq_base", 10_000.0)
    local_base = keys.positive("rope.freq_base_swa", family.local_base or base)
    return RopeSettings(
        dimensions=dimensions,
        base=base,
        local_base=local_base if family.local_base else None if local_base == base else local_base,
        stretch=1.0 if kind == "none" else stretch,
        is_yarn=kind == "yarn",
        original=keys.count("rope.scaling.original_context_length", keys.count("context_length")),
        attention_factor=factor,
        betas=(
            keys.positive("rope.scaling.yarn_beta_fast", 32.0),
            keys.positive("rope.scaling.yarn_beta_slow", 1.0),
        ),
    )

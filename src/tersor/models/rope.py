"""Rotary position embeddings: from either layout of config.json to GGUF keys and factor tensors.

Sources: Su et al. 2021, arXiv:2104.09864; YaRN, Peng et al. 2023, arXiv:2309.00071; LongRoPE, Ding et al. 2024,
arXiv:2402.13753; the Llama 3.1 rule as its reference code states it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, UnsupportedError
from tersor.core.metadata import MetadataEntry
from tersor.models.config import Config, positive

__all__ = ["Rope", "factor_tensors", "read_rope", "rope_metadata"]

_PARAMETERS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"}),
    "longrope": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"}
    ),
}
_ALIASES = {"su": "longrope"}
_ALWAYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # llama.cpp reads no other for these architectures
_MAX_FACTORS = 4096


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions turn queries and keys.

    kind            default, linear, llama3, yarn or longrope
    theta           base of the frequencies; `local_theta` that of sliding-window layers, where it differs
    dimensions      of each head that are turned
    original        positions before stretching; `context` positions now
    place           the config.json that says so, for errors
    parameters      the rest of what it says
    """

    kind: str
    theta: float
    dimensions: int
    context: int
    original: int
    place: str = field(compare=False)
    local_theta: float | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)

    def number(self, key: str, default: float | None = None) -> float:
        """Return one of `parameters` as a positive number."""
        value = self.parameters.get(key)
        if value is None and default is not None:
            return default
        return positive(value, f"{self.place}: the rope parameter {key}")


def read_rope(config: Config, head: int, context: int, kinds: Collection[str], *, partial: bool) -> Rope:
    """Return the rope settings: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    kinds    what the architecture can express in GGUF; anything else is an UnsupportedError
    partial  whether only a part of each head may be turned
    """
    new, old = config.mapping("rope_parameters"), config.mapping("rope_scaling")
    theta, local_theta = config.get("rope_theta"), config.get("rope_local_base_freq")
    share = config.get("partial_rotary_factor")
    outer_original = config.get("original_max_position_embeddings")
    if "full_attention" in new or "sliding_attention" in new:
        local = _nested(config, new, "sliding_attention")
        _kind(config, local, {"default"})
        local_theta = local.get("rope_theta", local_theta)
        new = _nested(config, new, "full_attention")
    _refuse_contradiction(config, old, new, 10_000.0 if theta is None else theta)
    parameters = {key: value for key, value in (new or old).items() if value is not None}
    kind = _kind(config, parameters, kinds)
    theta = parameters.get("rope_theta", theta if theta is not None else 10_000.0)
    share = parameters.get("partial_rotary_factor", 1.0 if share is None else share)
    share = positive(share, f"{config.place}: partial_rotary_factor")
    if share > 1 or (share != 1 and not partial):
        raise UnsupportedError(f"{config.place}: partial_rotary_factor = {share}; this architecture turns whole heads")
    original = outer_original or parameters.get("original_max_position_embeddings", context)
    original = positive(original, f"{config.place}: original_max_position_embeddings")
    if original < 1:
        raise FormatError(f"{config.place}: original_max_position_embeddings must be 1 or more, got {original}")
    return Rope(
        kind=kind,
        theta=positive(theta, f"{config.place}: rope_theta"),
        dimensions=int(head * share),
        context=context,
        original=int(original),
        place=config.place,
        local_theta=None if local_theta is None else positive(local_theta, f"{config.place}: the local rope_theta"),
        parameters=parameters,
    )


def rope_metadata(rope: Rope, architecture: str) -> dict[str, MetadataEntry]:
    """Return the `{architecture}.rope.*` keys."""
    made: dict[str, int | float | str] = {"dimension_count": rope.dimensions, "freq_base": rope.theta}
    if rope.local_theta is not None:
        made["freq_base_swa"] = rope.local_theta
    if rope.kind in ("linear", "yarn"):
        made |= {"scaling.type": rope.kind, "scaling.factor": rope.number("factor")}
    if rope.kind in ("yarn", "longrope"):
        made["scaling.original_context_length"] = rope.original
        factor = _attention_factor(rope)
        if rope.kind == "longrope" or factor != 1.0:
            made["scaling.attn_factor"] = factor
    return {f"{architecture}.rope.{key}": _entry(value) for key, value in made.items()}


def factor_tensors(rope: Rope) -> dict[str, Float32]:
    """Return the tensors of rope factors by name: divisors of the frequency of each pair of a head."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope)}
    if rope.kind == "longrope":
        return {f"rope_factors_{which}.weight": _listed_factors(rope, f"{which}_factor") for which in ("long", "short")}
    return {}


def _nested(config: Config, parameters: Mapping[str, object], key: str) -> dict[str, object]:
    value = parameters.get(key) or {}
    if not isinstance(value, dict):
        raise FormatError(f"{config.place}: rope_parameters.{key} must be an object, got {value!r:.60}")
    return value


def _refuse_contradiction(config: Config, old: Mapping[str, object], new: Mapping[str, object], theta: object) -> None:
    """Where both layouts stand they must say the same: transformers 5 heeds `rope_scaling` alone."""
    if not old or not new:
        return
    stated = []
    for layout in (old, new):
        values = {key: value for key, value in layout.items() if value is not None}
        kind = values.pop("rope_type", values.pop("type", "default"))
        values.pop("type", None)
        stated.append({"rope_theta": theta, "rope_type": kind, **values})
    if stated[0] != stated[1]:
        key = min(key for key in stated[0].keys() | stated[1].keys() if stated[0].get(key) != stated[1].get(key))
        raise UnsupportedError(
            f"{config.place}: rope_scaling and rope_parameters differ in {key} ({stated[0].get(key)!r:.40} and "
            f"{stated[1].get(key)!r:.40}); keep the one that the model was made with"
        )


def _kind(config: Config, parameters: Mapping[str, object], kinds: Collection[str]) -> str:
    raw = parameters.get("rope_type", parameters.get("type", "default"))
    kind = _ALIASES.get(raw, raw) if isinstance(raw, str) else ""
    if kind not in kinds:
        raise UnsupportedError(
            f"{config.place}: rope type {raw!r:.40} is not supported; this architecture has {', '.join(sorted(kinds))}"
        )
    unknown = set(parameters) - _PARAMETERS[kind] - _ALWAYS
    unknown = {key for key in unknown if parameters[key] is not None}
    if kind == "default":  # leftovers of a scaling that is off change nothing
        unknown -= frozenset().union(*_PARAMETERS.values())
    if unknown:
        raise UnsupportedError(f"{config.place}: the rope parameter {min(unknown)} of type {kind} is not known")
    for key, value in _YARN_BETAS.items():
        if kind == "yarn" and positive(parameters.get(key) or value, f"{config.place}: {key}") != value:
            raise UnsupportedError(f"{config.place}: {key} = {parameters[key]}; llama.cpp uses {value}")
    return kind


def _attention_factor(rope: Rope) -> float:
    """Return the factor on cos and sin that llama.cpp is to apply beyond its own."""
    if rope.kind == "yarn":
        own = 0.1 * math.log(max(rope.number("factor"), 1.0)) + 1.0
        return rope.number("attention_factor", own) / own
    scale = rope.number("factor", rope.context / rope.original)
    usual = math.sqrt(1 + math.log(scale) / math.log(rope.original)) if scale > 1 and rope.original > 1 else 1.0
    return rope.number("attention_factor", usual)


def _llama3_factors(rope: Rope) -> Float32:
    """Return [dimensions / 2]: 1 for short waves, `factor` for long ones, blended in between."""
    half = rope.dimensions // 2
    frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) * 2 / rope.dimensions)
    waves = 2 * math.pi / frequencies
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low == high:
        raise FormatError(f"{rope.place}: rope type llama3: low_freq_factor and high_freq_factor are both {low}")
    smooth = (rope.original / waves - low) / (high - low)
    with np.errstate(divide="ignore"):  # outside its band the blend may pass through zero; it is not used there
        blended = 1 / ((1 - smooth) / factor + smooth)
    short, long = waves < rope.original / high, waves > rope.original / low
    return np.where(short, 1.0, np.where(long, factor, blended)).astype(np.float32)


def _listed_factors(rope: Rope, key: str) -> Float32:
    values = rope.parameters.get(key)
    if not isinstance(values, list) or len(values) != rope.dimensions // 2 or len(values) > _MAX_FACTORS:
        length = len(values) if isinstance(values, list) else "no list"
        raise FormatError(
            f"{rope.place}: rope type longrope: {key} must list {rope.dimensions // 2} factors, it has {length}"
        )
    return np.array([positive(value, f"{rope.place}: {key}") for value in values], dtype=np.float32)


def _entry(value: float | str) -> MetadataEntry:
    if isinstance(value, str):
        return MetadataEntry(value, "str")
    return MetadataEntry(value, "u32" if isinstance(value, int) else "f32")

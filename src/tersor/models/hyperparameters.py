"""From config.json and a table row to the sizes of every axis, the GGUF keys, and what must be said about them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tersor.core.errors import FormatError, UnsupportedError
from tersor.core.metadata import MetadataEntry
from tersor.models.architectures import Architecture
from tersor.models.config import Config
from tersor.models.rope import Rope, read_rope, rope_metadata

__all__ = ["Hyperparameters", "read_hyperparameters"]


_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What a config.json comes to.

    axes          sizes by the names that tensor rules use
    layers        number of blocks; `heads`, `key_heads` of attention
    rope          rotary positions
    tied          whether the output matrix is the embedding matrix
    query_factor  what queries are multiplied by, so that the engine's attention scale becomes the source's
    metadata      the `{architecture}.*` keys
    notes         where the engine is known to differ from the source
    """

    axes: dict[str, int]
    layers: int
    heads: int
    key_heads: int
    rope: Rope
    tied: bool
    query_factor: float
    metadata: dict[str, MetadataEntry]
    notes: tuple[str, ...]


def read_hyperparameters(config: Config, row: Architecture, ignore: Collection[str] = ()) -> Hyperparameters:
    """Return the hyperparameters; UnsupportedError at anything that GGUF or llama.cpp cannot express for this row."""
    _check_switches(config, row)
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    key_heads = config.count("num_key_value_heads", heads)
    head = config.count("head_dim", max(hidden // heads, 1))
    if heads % key_heads:
        raise UnsupportedError(f"{config.place}: {heads} heads do not share {key_heads} key/value heads evenly")
    if not row.free_head and head * heads != hidden:
        raise UnsupportedError(
            f"{config.place}: {heads} heads of {head} are not hidden_size {hidden}; llama.cpp's {row.name} needs that"
        )
    layers, inner = config.count("num_hidden_layers"), config.count("intermediate_size")
    context = config.count("max_position_embeddings")
    rope = read_rope(config, head, context, row.rope_kinds, partial=row.partial_rope)
    counts = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": key_heads,
        "attention.key_length": head,
        "attention.value_length": head,
    }
    metadata = {f"{row.name}.{key}": MetadataEntry(value, "u32") for key, value in counts.items()}
    epsilon = MetadataEntry(config.number("rms_norm_eps"), "f32")
    metadata[f"{row.name}.attention.layer_norm_rms_epsilon"] = epsilon
    metadata |= rope_metadata(rope, row.name) | _row_keys(config, row)
    window, notes = _window(config, row, layers, context)
    metadata |= window
    if rope.kind == "longrope":
        notes += (
            f"llama.cpp takes the long rope factors when its context exceeds {rope.original}, however short the text",
        )
    factor = _query_factor(config, row, layers, hidden // heads, head)
    tied = config.flag("tie_word_embeddings", row.tied)
    sizes = {"hidden": hidden, "query": heads * head, "key": key_heads * head, "head": head, "inner": inner}
    axes = _axes(config, sizes)
    config.refuse_unknown(ignore)
    return Hyperparameters(axes, layers, heads, key_heads, rope, tied, factor, metadata, notes)


def _axes(config: Config, plain: dict[str, int]) -> dict[str, int]:
    """Return the sizes by name: the plain ones, and those made from them."""
    inner = plain["inner"]
    axes = {**plain, "vocabulary": config.count("vocab_size"), "twice_inner": 2 * inner}
    axes["query_key_value"] = plain["query"] + 2 * plain["key"]
    if config.get("num_experts") is not None:
        if config.count("num_experts_per_tok") > config.count("num_experts"):
            raise FormatError(f"{config.place}: more experts per token than experts")
        axes |= {"experts": config.count("num_experts"), "expert": config.count("moe_intermediate_size", inner)}
    return axes


def _check_switches(config: Config, row: Architecture) -> None:
    """Stop at switches whose value the engine does not share."""
    for key in ("quantization_config", "compression_config"):
        settings = config.mapping(key)
        if settings:
            method = settings.get("quant_method", "unknown")
            raise UnsupportedError(
                f"{config.place}: the checkpoint is already quantized with {method!r:.60}; load the original model"
            )
    key, known = row.activation
    activation = config.text(key) or config.text("hidden_act") or config.text("hidden_activation")
    if activation not in known:
        raise UnsupportedError(f"{config.place}: activation {activation!r:.60}; llama.cpp's {row.name} has {known[0]}")
    config.get("hidden_act")  # Gemma's older configs carry a second, overruled one
    for key, wanted in row.fixed.items():
        value = config.get(key)
        if value is not None and value != wanted:
            raise UnsupportedError(f"{config.place}: {key} = {value!r:.60}; llama.cpp's {row.name} assumes {wanted!r}")
    for key in ("attention_bias", "mlp_bias"):  # the tensors themselves tell, and stop the run where no rule takes them
        config.flag(key, default=False)


def _row_keys(config: Config, row: Architecture) -> dict[str, MetadataEntry]:
    made: dict[str, MetadataEntry] = {}
    for key in row.keys:
        if config.get(key.config) is None and key.absent != "refuse":
            value: int | float | None = 0 if key.absent == "zero" else None
        else:
            value = config.count(key.config) if key.kind == "u32" else config.number(key.config)
        if value is not None:
            made[f"{row.name}.{key.name}"] = MetadataEntry(value, key.kind)
    return made


def _window(
    config: Config, row: Architecture, layers: int, context: int
) -> tuple[dict[str, MetadataEntry], tuple[str, ...]]:
    """Return the keys of sliding-window attention, and a note where the engine does without."""
    key = "sliding_window_pattern" if config.get("sliding_window_pattern") else "_sliding_window_pattern"
    types = config.get("layer_types")
    slides = config.flag("use_sliding_window", default=True) and config.get("sliding_window") is not None
    if types is not None and not (isinstance(types, list) and all(kind in _LAYER_TYPES for kind in types)):
        raise UnsupportedError(f"{config.place}: layer_types {types!r:.80}; full and sliding attention are known")
    if row.window == "none":
        window = config.count("sliding_window") if slides else context
        if window >= context or (types is not None and "sliding_attention" not in types):
            return {}, ()
        return {}, (
            f"the source attends to the last {window} tokens, llama.cpp's {row.name} to all: beyond, results differ",
        )
    period = config.count(key, row.window)
    sliding = [kind == "sliding_attention" for kind in types] if isinstance(types, list) else None
    if sliding is None:
        sliding = [(index + 1) % period != 0 for index in range(min(layers, 2**16))]
    if len(sliding) != layers:
        raise UnsupportedError(f"{config.place}: layer_types lists {len(sliding)} layers of {layers}")
    made = {f"{row.name}.attention.sliding_window": MetadataEntry(config.count("sliding_window"), "u32")}
    if sliding != [(index + 1) % row.window != 0 for index in range(layers)]:
        made[f"{row.name}.attention.sliding_window_pattern"] = MetadataEntry(list(sliding), "[bool]")
    return made, ()


def _query_factor(config: Config, row: Architecture, layers: int, hidden_head: int, head: int) -> float:
    """Return sqrt(engine's scalar / source's scalar): llama.cpp takes the head size, except for the largest Gemmas."""
    if row.engine_scale is None:
        return 1.0
    engine = hidden_head if layers == row.engine_scale else head
    return float((engine / config.number("query_pre_attn_scalar", float(engine))) ** 0.5)

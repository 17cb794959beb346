"""What llama.cpp needs to know of each architecture: one table row each.

A row is facts only: config keys → GGUF keys, tensor names → GGUF names with their change, and the switches of
config.json that must stand as the engine assumes. `checkpoint_model.py` applies rows; a new one needs no code there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tersor.core.errors import UnsupportedError

__all__ = ["ARCHITECTURES", "Architecture", "Key", "TensorRule", "find"]

Change: TypeAlias = Literal[
    "plain", "heads_q", "heads_k", "norm_plus_1", "query_scale", "query_norm", "first_half", "second_half", "tokens"
]
"""plain: as it is · heads_*: halves of each head interleaved · norm_plus_1: stored less 1 · query_scale, query_norm:
carries the ratio of the source's attention scale to the engine's · halves: gate and up stored as one · tokens: rows
that no token has are cut."""


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor: `source` in the checkpoint ({i} block, {e} expert: stacked) → `name` in the GGUF ({i} block).

    shape names the axes of the result in numpy order; see `Dimensions`. Of several rules for one name, the first whose
    sources exist holds.
    """

    source: str
    name: str
    shape: tuple[str, ...]
    change: Change = "plain"
    required: bool = True


@dataclass(frozen=True, slots=True)
class Key:
    """One config key that becomes `{architecture}.{name}`.

    absent   what to do when config.json lacks it: "refuse", "omit" the key, or write "zero"
    """

    name: str
    config: str
    kind: Literal["u32", "f32"]
    absent: Literal["refuse", "omit", "zero"] = "refuse"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row.

    name          as llama.cpp calls it
    classes       values of `architectures[0]`; `model_types` values of `model_type`
    rules         tensors in file order: embeddings, blocks, output
    activation    the config key and the values that mean what the engine computes
    keys          further GGUF keys
    rope_kinds    rope types that GGUF can express for it; `partial_rope` whether heads may be turned in part
    free_head     whether a head may differ from hidden_size / num_attention_heads
    window        "none": llama.cpp attends to everything; a number n: every n-th layer is global, the others slide
    fixed         switches that must have this value when they are present
    defaults      values that the checkpoint's library fills in when config.json leaves them out
    tied          what `tie_word_embeddings` means when it is absent
    prefixes      beginnings of tensor names and what stands for them in the rules
    left_out      beginnings of tensor names that are not text: vision towers
    engine_scale  layer count at which llama.cpp scales queries by hidden_size / heads instead of by the head
    """

    name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    rules: tuple[TensorRule, ...]
    activation: tuple[str, tuple[str, ...]] = ("hidden_act", ("silu", "swish"))
    keys: tuple[Key, ...] = ()
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    partial_rope: bool = False
    free_head: bool = True
    window: Literal["none"] | int = "none"
    fixed: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    tied: bool = False
    prefixes: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    engine_scale: int | None = None


def find(classes: object, model_type: object, place: str) -> Architecture:
    """Return the row for `architectures` and `model_type` of the config.json at `place`.

    Raises UnsupportedError, which names what there is.
    """
    names = classes if isinstance(classes, list) else [classes] if isinstance(classes, str) else []
    for row in ARCHITECTURES:
        if (names and names[0] in row.classes) or (not names and model_type in row.model_types):
            return row
    known = ", ".join(name for row in ARCHITECTURES for name in row.classes)
    said = f"architecture {names[0]!r:.80}" if names else f"model_type {model_type!r:.80}"
    raise UnsupportedError(f"{place}: {said} is not supported; there are rows for {known}")


_EMBEDDING = TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden"))
_OUTPUT = (
    TensorRule("model.norm.weight", "output_norm.weight", ("hidden",)),
    TensorRule("lm_head.weight", "output.weight", ("vocabulary", "hidden")),
)
_LAYER = "model.layers.{i}."


def _block(source: str, name: str, *shape: str, change: Change = "plain", required: bool = True) -> TensorRule:
    return TensorRule(_LAYER + source, "blk.{i}." + name, shape, change, required)


_NORMS = (
    _block("input_layernorm.weight", "attn_norm.weight", "hidden"),
    _block("post_attention_layernorm.weight", "ffn_norm.weight", "hidden"),
)
_ATTENTION = (
    _block("self_attn.q_proj.weight", "attn_q.weight", "query", "hidden"),
    _block("self_attn.k_proj.weight", "attn_k.weight", "key", "hidden"),
    _block("self_attn.v_proj.weight", "attn_v.weight", "key", "hidden"),
    _block("self_attn.o_proj.weight", "attn_output.weight", "hidden", "query"),
)
_QKV_BIASES = (
    _block("self_attn.q_proj.bias", "attn_q.bias", "query", required=False),
    _block("self_attn.k_proj.bias", "attn_k.bias", "key", required=False),
    _block("self_attn.v_proj.bias", "attn_v.bias", "key", required=False),
)
_OUTPUT_BIAS = _block("self_attn.o_proj.bias", "attn_output.bias", "hidden", required=False)
_QK_NORMS = (
    _block("self_attn.q_norm.weight", "attn_q_norm.weight", "head"),
    _block("self_attn.k_norm.weight", "attn_k_norm.weight", "head"),
)
_FEED_FORWARD = (
    _block("mlp.gate_proj.weight", "ffn_gate.weight", "inner", "hidden"),
    _block("mlp.up_proj.weight", "ffn_up.weight", "inner", "hidden"),
    _block("mlp.down_proj.weight", "ffn_down.weight", "hidden", "inner"),
)
_FEED_FORWARD_BIASES = (
    _block("mlp.gate_proj.bias", "ffn_gate.bias", "inner", required=False),
    _block("mlp.up_proj.bias", "ffn_up.bias", "inner", required=False),
    _block("mlp.down_proj.bias", "ffn_down.bias", "hidden", required=False),
)


def _interleaved(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    """Return the rules with Q and K reordered: the llama graph turns neighbouring pairs."""
    changes: dict[str, Change] = {"attn_q": "heads_q", "attn_k": "heads_k"}
    return tuple(
        TensorRule(rule.source, rule.name, rule.shape, changes.get(rule.name.split(".")[2], rule.change), rule.required)
        for rule in rules
    )


def _experts(*places: str, gate: str, up: str, down: str) -> tuple[TensorRule, ...]:
    """Return rules for experts in files of their own, and for transformers 5's stacks, under each of `places`."""
    rules = []
    for place in places:
        rules += [
            _block(f"{place}.gate.weight", "ffn_gate_inp.weight", "experts", "hidden"),
            _block(f"{place}.experts.{{e}}.{gate}.weight", "ffn_gate_exps.weight", "experts", "expert", "hidden"),
            _block(f"{place}.experts.{{e}}.{up}.weight", "ffn_up_exps.weight", "experts", "expert", "hidden"),
            _block(f"{place}.experts.{{e}}.{down}.weight", "ffn_down_exps.weight", "experts", "hidden", "expert"),
        ]
        stack, shape = f"{place}.experts.gate_up_proj", ("experts", "expert", "hidden")
        rules += [
            _block(stack, "ffn_gate_exps.weight", *shape, change="first_half"),
            _block(stack, "ffn_up_exps.weight", *shape, change="second_half"),
            _block(f"{place}.experts.down_proj", "ffn_down_exps.weight", "experts", "hidden", "expert"),
        ]
    return tuple(rules)


_EXPERT_KEYS = (Key("expert_used_count", "num_experts_per_tok", "u32"),)

_GEMMA_NORMS = (
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
)


def _gemma(*blocks: TensorRule) -> tuple[TensorRule, ...]:
    norms = tuple(_block(f"{a}.weight", f"{b}.weight", "hidden", change="norm_plus_1") for a, b in _GEMMA_NORMS)
    last = TensorRule("model.norm.weight", "output_norm.weight", ("hidden",), "norm_plus_1")
    return (*norms, *blocks, *_FEED_FORWARD, last)


_CAUSAL: Mapping[str, object] = {"is_causal": True, "use_bidirectional_attention": False}
_GEMMA_ACTIVATION = ("hidden_activation", ("gelu_pytorch_tanh", "gelu_new"))

ARCHITECTURES: tuple[Architecture, ...] = (
    # Llama 1 to 3.x, Mistral and Nemo, SmolLM 1 and 2, TinyLlama, and what else is built like them
    Architecture(
        name="llama",
        classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
        model_types=("llama", "mistral"),
        rules=(
            _EMBEDDING,
            *_NORMS,
            *_interleaved((*_ATTENTION, *_QKV_BIASES)),
            _OUTPUT_BIAS,
            *_FEED_FORWARD,
            *_FEED_FORWARD_BIASES,
            *_OUTPUT,
        ),
        rope_kinds=("default", "linear", "llama3", "yarn"),
        fixed=_CAUSAL,
    ),
    Architecture(
        name="llama",
        classes=("MixtralForCausalLM",),
        model_types=("mixtral",),
        rules=(
            _EMBEDDING,
            *_NORMS,
            *_interleaved(_ATTENTION),
            *_experts("block_sparse_moe", "mlp", gate="w1", up="w3", down="w2"),
            *_OUTPUT,
        ),
        keys=(Key("expert_count", "num_experts", "u32"), *_EXPERT_KEYS),
        fixed=_CAUSAL,
    ),
    Architecture(
        name="qwen2",
        classes=("Qwen2ForCausalLM",),
        model_types=("qwen2",),
        rules=(_EMBEDDING, *_NORMS, *_ATTENTION, *_QKV_BIASES, *_FEED_FORWARD, *_OUTPUT),
        free_head=False,
        fixed=_CAUSAL,
        defaults={"use_sliding_window": False},
    ),
    Architecture(
        name="qwen3",
        classes=("Qwen3ForCausalLM",),
        model_types=("qwen3",),
        rules=(_EMBEDDING, *_NORMS, *_ATTENTION, *_QK_NORMS, *_FEED_FORWARD, *_OUTPUT),
        defaults={"head_dim": 128, "use_sliding_window": False},
        fixed=_CAUSAL,
    ),
    Architecture(
        name="qwen3moe",
        classes=("Qwen3MoeForCausalLM",),
        model_types=("qwen3_moe",),
        rules=(
            _EMBEDDING,
            *_NORMS,
            *_ATTENTION,
            *_QK_NORMS,
            *_experts("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
            *_OUTPUT,
        ),
        keys=(
            Key("expert_count", "num_experts", "u32"),
            *_EXPERT_KEYS,
            Key("expert_feed_forward_length", "moe_intermediate_size", "u32"),
        ),
        fixed={**_CAUSAL, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        defaults={"norm_topk_prob": False, "use_sliding_window": False},
    ),
    Architecture(
        name="gemma2",
        classes=("Gemma2ForCausalLM",),
        model_types=("gemma2",),
        rules=(
            _EMBEDDING,
            *_gemma(
                _block("self_attn.q_proj.weight", "attn_q.weight", "query", "hidden", change="query_scale"),
                *_ATTENTION[1:],
            ),
        ),
        activation=_GEMMA_ACTIVATION,
        keys=(
            Key("attn_logit_softcapping", "attn_logit_softcapping", "f32"),
            Key("final_logit_softcapping", "final_logit_softcapping", "f32"),
        ),
        rope_kinds=("default",),
        window=2,
        fixed=_CAUSAL,
        defaults={"head_dim": 256, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh"},
        tied=True,
        engine_scale=46,
    ),
    Architecture(
        name="gemma3",
        classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        model_types=("gemma3_text", "gemma3"),
        rules=(
            TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden"), "tokens"),
            *_gemma(
                *_ATTENTION,
                _block("self_attn.q_norm.weight", "attn_q_norm.weight", "head", change="query_norm"),
                _block("self_attn.k_norm.weight", "attn_k_norm.weight", "head", change="norm_plus_1"),
            ),
        ),
        activation=_GEMMA_ACTIVATION,
        keys=(Key("final_logit_softcapping", "final_logit_softcapping", "f32", absent="omit"),),
        rope_kinds=("default", "linear"),
        window=6,
        fixed={**_CAUSAL, "attn_logit_softcapping": None},
        defaults={
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        tied=True,
        prefixes=(("model.language_model.", "model."), ("language_model.", "")),
        left_out=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
        engine_scale=62,
    ),
    Architecture(
        name="phi3",
        classes=("Phi3ForCausalLM",),
        model_types=("phi3",),
        rules=(
            _EMBEDDING,
            *_NORMS,
            _block("self_attn.qkv_proj.weight", "attn_qkv.weight", "query_key_value", "hidden"),
            _ATTENTION[3],
            _block("mlp.gate_up_proj.weight", "ffn_up.weight", "twice_inner", "hidden"),
            _FEED_FORWARD[2],
            *_OUTPUT,
        ),
        keys=(Key("attention.sliding_window", "sliding_window", "u32", absent="zero"),),
        rope_kinds=("default", "longrope"),
        partial_rope=True,
        free_head=False,
        fixed=_CAUSAL,
    ),
)

"""What a user asks of a plan, and what that leaves for the tensors that have a choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tersor.core.errors import SchemeError
from tersor.core.quantities import size
from tersor.models.model import Model
from tersor.targets.processor import processor
from tersor.targets.roofs import measure_roofs

__all__ = ["PlanGoal", "cache_bytes", "check_limits", "read_rate"]

HALF = 2
"""Bytes of an entry of llama.cpp's cache of keys and values, as it is unless asked otherwise."""
LOGIT_TOKENS = 512
"""Of whose prediction llama.cpp holds float32 logits at most, at a time."""


@dataclass(frozen=True, slots=True)
class PlanGoal:
    """Limits of a plan; None: no limit. At least one is set.

    max_bytes        of the file
    bits_per_weight  mean over the whole model, tensors only
    max_kl           nats per token
    max_perplexity_increase  percent
    max_latency_ms   of one generated token, reading the weights at the rate of the target's memory: a bound that no
                     engine beats
    memory_bytes     of weights, the cache of `context` tokens and the logits
    bandwidth        bytes per second at which the target reads weights; None: this machine's, measured
    """

    max_bytes: int | None = None
    bits_per_weight: float | None = None
    max_kl: float | None = None
    max_perplexity_increase: float | None = None
    max_latency_ms: float | None = None
    memory_bytes: int | None = None
    context: int = 4096
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "--max-size": self.max_bytes,
            "--bits-per-weight": self.bits_per_weight,
            "--max-kl": self.max_kl,
            "--max-perplexity-increase": self.max_perplexity_increase,
            "--max-latency-ms": self.max_latency_ms,
            "--memory": self.memory_bytes,
        }
        given = {name: value for name, value in limits.items() if value is not None}
        if not given:
            raise SchemeError(f"a plan needs a goal: one of {', '.join(limits)}")
        if self.bandwidth is not None:
            given["--bandwidth"] = self.bandwidth
        check_limits(given)

    @property
    def kl(self) -> float | None:
        """The largest divergence that is allowed, nats per token.

        A perplexity grows by the exponential of what the loss grows by, and the loss grows by the divergence where the
        text is what the model expects: on other text by more or less.
        """
        found = [] if self.max_kl is None else [self.max_kl]
        if self.max_perplexity_increase is not None:
            found.append(math.log1p(self.max_perplexity_increase / 100))
        return min(found, default=None)

    def nbytes(self, model: Model, *, weights: int, kept: int, overhead: int, streamed: int) -> int | None:
        """Return how many bytes the tensors that have a choice may take; None: no limit of size.

        weights   parameters of the model
        kept      bytes of tensors without a choice
        overhead  bytes of the file beyond its tensors
        streamed  bytes of tensors with a choice that generating a token does not read: a table of its own
        """
        limits = []
        if self.max_bytes is not None:
            limits.append(self.max_bytes - overhead - kept)
        if self.bits_per_weight is not None:
            limits.append(math.floor(self.bits_per_weight * weights / 8) - kept)
        if self.memory_bytes is not None:
            limits.append(self.memory_bytes - cache_bytes(model, self.context) - kept)
        if self.max_latency_ms is not None:
            assert self.bandwidth is not None, "a plan measures what nobody told"
            limits.append(math.floor(self.max_latency_ms / 1000 * self.bandwidth) - kept + streamed)
        return min(limits, default=None)

    def described(self) -> str:
        """Return the limits in words."""
        parts = []
        if self.max_bytes is not None:
            parts.append(f"file of at most {size(self.max_bytes)}")
        if self.bits_per_weight is not None:
            parts.append(f"at most {self.bits_per_weight:g} bits per weight")
        if self.max_kl is not None:
            parts.append(f"divergence of at most {self.max_kl:g} nats")
        if self.max_perplexity_increase is not None:
            parts.append(f"perplexity at most {self.max_perplexity_increase:g} % higher")
        if self.max_latency_ms is not None:
            parts.append(f"weights read in {self.max_latency_ms:g} ms a token")
        if self.memory_bytes is not None:
            parts.append(f"{size(self.memory_bytes)} of memory with {self.context} tokens of context")
        return ", ".join(parts)


def check_limits(given: Mapping[str, float]) -> None:
    """Raise SchemeError for the first of these limits, by option, that is no number above 0."""
    wrong = [f"{name} {value}" for name, value in given.items() if not 0 < value < math.inf]
    if wrong:
        raise SchemeError(f"{wrong[0]}: a limit is a number above 0")


def cache_bytes(model: Model, context: int) -> int:
    """Return what an engine holds beside the weights: keys and values of `context` tokens in 16 bits, and logits."""

    def entry(key: str, default: int) -> int:
        found = model.metadata.get(f"{model.architecture}.{key}")
        value = default if found is None else found.value
        first = value[0] if isinstance(value, list) else value
        return int(first) if isinstance(first, int | float) else default

    layers, hidden = entry("block_count", 0), entry("embedding_length", 0)
    heads = max(entry("attention.head_count", 1), 1)
    width = entry("attention.key_length", hidden // heads)
    keys = entry("attention.head_count_kv", heads) * (width + entry("attention.value_length", width))
    rows = next((tensor.rows for tensor in model.tensors if tensor.name == "token_embd.weight"), 0)
    return layers * keys * context * HALF + rows * LOGIT_TOKENS * 4


def read_rate() -> float:
    """Return at how many bytes per second this machine reads its memory, all cores together."""
    return measure_roofs(processor().physical).read_bytes_per_s

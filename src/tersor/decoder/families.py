"""What the engine computes for each architecture beyond what the GGUF says: one table row each.

Facts as llama.cpp's graphs have them; sizes, bases and factors stand in the metadata of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """A row.

    pairs              which elements of a head turn together: "neighbours" 2j and 2j + 1, or the j-th of both "halves"
    activation         of the gate; gelu is its tanh approximation
    scales_embeddings  whether embeddings are multiplied by sqrt(hidden)
    window             of sliding layers where the metadata names none; None: there are no sliding layers then
    score_cap          soft cap of attention scores, where the metadata names none; `logit_cap` that of logits
    local_base         rope base of sliding layers where the metadata names none; None: that of the others
    """

    pairs: Literal["neighbours", "halves"] = "halves"
    activation: Literal["silu", "gelu"] = "silu"
    scales_embeddings: bool = False
    window: int | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    local_base: float | None = None


FAMILIES: dict[str, Family] = {
    "llama": Family(pairs="neighbours"),
    "qwen2": Family(),
    "qwen3": Family(),
    "qwen3moe": Family(),
    "gemma2": Family(activation="gelu", scales_embeddings=True, window=4096, score_cap=50.0, logit_cap=30.0),
    "gemma3": Family(activation="gelu", scales_embeddings=True, local_base=10_000.0),
    "phi3": Family(),
}

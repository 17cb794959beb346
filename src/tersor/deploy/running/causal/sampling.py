"""Draw the next token from logits as OpenAI's protocol says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Draw", "Sampling"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    temperature, top_p  0: the likeliest; the smallest set of tokens that has this share of the probability
    presence, frequency subtracted from the logit of a token that was said, once and for each time
    bias                token → what is added to its logit
    seed                None: another each time
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


class Draw:
    """The choices of one text; the same logits and seed give the same tokens.

    vocabulary  length of the logits
    """

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)
        self._counts = torch.zeros(vocabulary)
        self._bias = torch.zeros(vocabulary)
        for token, value in sampling.bias.items():
            self._bias[token] = value

    def next(self, logits: Tensor) -> int:
        """Return a token for `logits` [vocabulary] float32, which are not modified."""
        asked = self._sampling
        logits = logits + self._bias - asked.frequency * self._counts - asked.presence * (self._counts > 0)
        if asked.temperature == 0:
            token = int(logits.argmax())
        else:
            # In float64: a temperature near 0 makes logits that float32 cannot hold.
            ordered, places = torch.softmax(logits.double() / max(asked.temperature, 1e-6), -1).sort(descending=True)
            before = ordered.cumsum(-1) - ordered
            ordered = torch.where(before < max(asked.top_p, 1e-9), ordered, 0.0)  # the first one always stays
            token = int(places[torch.multinomial(ordered, 1, generator=self._random)])
        self._counts[token] += 1
        return token

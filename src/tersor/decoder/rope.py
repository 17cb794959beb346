"""Rotary positions: tables of cos and sin, made once for the longest text so far, and turning by them.

Sources: Su et al. 2021, arXiv:2104.09864; YaRN, Peng et al. 2023, arXiv:2309.00071; LongRoPE, Ding et al. 2024,
arXiv:2402.13753.
Differs: angles are computed in float64 and rounded once; engines multiply float32 frequencies up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tersor.decoder.settings import RopeSettings
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Rope"]


@dataclass(frozen=True, slots=True)
class _Table:
    """cos and sin of every position and pair, [tokens, 1, pairs]; `both` is cos + i sin."""

    cos: Tensor
    sin: Tensor
    both: Tensor


class Rope:
    """Turns queries and keys by their positions, which count from 0 in every text.

    settings  bases, stretching, dimensions
    factors   "rope_freqs", "rope_factors_long", "rope_factors_short" where the model has them: divisors of the
              frequencies, [dimensions / 2]
    pairs     which elements of a head turn together
    """

    def __init__(
        self,
        settings: RopeSettings,
        factors: Mapping[str, Tensor],
        pairs: Literal["neighbours", "halves"],
        device: str,
    ) -> None:
        self._settings, self._factors, self._pairs, self._device = settings, factors, pairs, device
        self._tables: dict[tuple[bool, str], _Table] = {}

    def turn(self, x: Tensor, *, is_local: bool) -> Tensor:
        """Return `x` [batch, tokens, heads, head] turned; `is_local` for a block that slides."""
        tokens, turned = x.shape[1], self._settings.dimensions
        table = self._table(tokens, is_local=is_local and self._settings.local_base is not None)
        if self._pairs == "neighbours":  # a complex product: one pass over memory
            pairs = torch.view_as_complex(x[..., :turned].view(*x.shape[:-1], -1, 2))
            made = torch.view_as_real(pairs * table.both[:tokens]).flatten(-2)
            return made if turned == x.shape[-1] else torch.cat((made, x[..., turned:]), -1)
        cos, sin, half = table.cos[:tokens], table.sin[:tokens], turned // 2
        first, second = x[..., :half], x[..., half:turned]
        if x.requires_grad:
            parts = (first * cos - second * sin, second * cos + first * sin, x[..., turned:])
            return torch.cat(parts, -1)
        made = torch.empty_like(x)
        torch.mul(first, cos, out=made[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=made[..., half:turned]).addcmul_(first, sin)
        made[..., turned:] = x[..., turned:]
        return made

    def _table(self, tokens: int, *, is_local: bool) -> _Table:
        """Return a table of at least `tokens` positions."""
        which = self._which_factors(tokens)
        found = self._tables.get((is_local, which))
        if found is None or len(found.cos) < tokens:
            found = self._tables[is_local, which] = self._made(tokens, which, is_local=is_local)
        return found

    def _which_factors(self, tokens: int) -> str:
        if "rope_freqs" in self._factors:
            return "rope_freqs"
        return "rope_factors_long" if tokens > self._settings.original else "rope_factors_short"

    def _made(self, tokens: int, which: str, *, is_local: bool) -> _Table:
        settings = self._settings
        angles = torch.outer(torch.arange(tokens, dtype=torch.float64), self._frequencies(which, is_local=is_local))
        cos, sin = (
            (values * (1.0 if is_local else settings.attention_factor)).to(torch.float32)[:, None].to(self._device)
            for values in (angles.cos(), angles.sin())
        )
        return _Table(cos, sin, torch.complex(cos, sin))

    def _frequencies(self, which: str, *, is_local: bool) -> Tensor:
        """Return the angle of one position for each pair, float64 [dimensions / 2]."""
        settings, count = self._settings, self._settings.dimensions
        pairs = torch.arange(count // 2, dtype=torch.float64)
        if is_local and settings.local_base is not None:
            return torch.as_tensor(settings.local_base ** (-2 * pairs / count))
        frequencies = torch.as_tensor(settings.base ** (-2 * pairs / count))
        if which in self._factors:
            frequencies = frequencies / self._factors[which].to(torch.float64)
        if not settings.is_yarn:
            return frequencies / settings.stretch
        low, high = _yarn_band(settings)
        kept = 1 - ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / settings.stretch)


def _yarn_band(settings: RopeSettings) -> tuple[int, int]:
    """Return the first and last pair between the waves that stay and those that are stretched."""
    count = settings.dimensions
    fast, slow = (
        count * math.log(settings.original / (turns * 2 * math.pi)) / (2 * math.log(settings.base))
        for turns in settings.betas
    )
    return max(math.floor(fast), 0), min(math.ceil(slow), count - 1)

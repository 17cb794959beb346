"""Does it help beyond the calibration text? Three forward passes on sequences that no method has seen.

Full precision, the method's weights and plainly rounded weights go through the model side by side, block by block;
at the end stand the two divergences from the full-precision model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tersor.analyse.side_by_side import Rows, SideBySide
from tersor.decoder import Block, Decoder
from tersor.evaluation.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gain", "HeldOut", "Rows"]

METHOD, PLAIN = "method", "rtn"
"""The two sides beside full precision."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean divergence from the full-precision model, nats per token, with intervals over sequences.

    method  of the weights that are written
    rtn     of plain rounding, importance-weighted, at the same bytes
    ratio   method / rtn; 1 where both are zero
    same_top  share of tokens whose likeliest continuation stays the same, method and rtn
    """

    method: Interval
    rtn: Interval
    same_top: tuple[float, float]
    tokens: int

    @property
    def ratio(self) -> float:
        """How much of the divergence of plain rounding is left."""
        return self.method.value / self.rtn.value if self.rtn.value > 0 else 1.0

    @property
    def is_worse(self) -> bool:
        """Whether plain rounding would be better, beyond the noise of identical results."""
        return self.method.value > max(self.rtn.value * 1.001, 1e-9)


@dataclass
class HeldOut:
    """The held-out sequences behind full precision, the method's weights and plainly rounded ones.

    ids  int64 [sequences, tokens]
    """

    decoder: Decoder
    ids: npt.NDArray[np.int64]
    sides: SideBySide = field(init=False)

    def __post_init__(self) -> None:
        self.sides = SideBySide(self.decoder, self.ids)

    def begin(self, embed: Callable[[Tensor], Tensor] | None) -> None:
        """Embed the sequences; `embed` gives the embeddings behind the quantized table."""

        def embedded(ids: Tensor) -> Tensor:
            hidden = self.decoder.embed(ids)
            return hidden if embed is None else embed(hidden)

        self.sides.begin({METHOD: embedded, PLAIN: embedded})

    def through(self, block: Block, method: Mapping[str, Tensor], rtn: Mapping[str, Tensor]) -> None:
        """Take all sides through a block; its own weights are back in place afterwards."""
        self.sides.through(block, {METHOD: method, PLAIN: rtn})

    def gain(self, method: Rows | None, rtn: Rows | None) -> Gain:
        """Compare at the end; `method` and `rtn` decode rows of the output matrix, None: it stays in full precision."""
        found = self.sides.divergences({METHOD: method, PLAIN: rtn})
        ours, plain = found[METHOD], found[PLAIN]
        same = float(ours.same_top.mean()), float(plain.same_top.mean())
        return Gain(mean_interval(ours.kl), mean_interval(plain.kl), same, ours.tokens)

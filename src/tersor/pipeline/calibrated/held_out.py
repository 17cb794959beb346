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

from tersor.analyse.side_by_side import Divergence, Rows, SideBySide
from tersor.decoder import Block, Decoder
from tersor.evaluation.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gain", "HeldOut", "Rows"]

METHOD, PLAIN = "method", "rtn"
"""The two sides beside full precision."""


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """Divergence from the full-precision model on the same sequences, nats per token.

    of_method  of the weights that are written
    of_rtn     of plain rounding, importance-weighted, at the same bytes
    """

    of_method: Divergence
    of_rtn: Divergence

    @property
    def method(self) -> Interval:
        """Mean of what is written, with an interval over sequences."""
        return mean_interval(self.of_method.kl)

    @property
    def rtn(self) -> Interval:
        """That of plain rounding."""
        return mean_interval(self.of_rtn.kl)

    @property
    def same_top(self) -> tuple[float, float]:
        """Share of tokens whose likeliest continuation stays the same, method and rtn."""
        return float(self.of_method.same_top.mean()), float(self.of_rtn.same_top.mean())

    @property
    def tokens(self) -> int:
        """How many were compared."""
        return self.of_method.tokens

    @property
    def ratio(self) -> float:
        """How much of the divergence of plain rounding is left; 1 where both are zero."""
        return self.method.value / self.rtn.value if self.rtn.value > 0 else 1.0

    @property
    def is_worse(self) -> bool:
        """Whether plain rounding would be better, beyond the noise of identical results."""
        return self.method.value > max(self.rtn.value * 1.001, 1e-9)

    def only(self, rows: npt.NDArray[np.int64]) -> Gain:
        """Return that on some of the sequences."""
        return Gain(self.of_method.only(rows), self.of_rtn.only(rows))


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
        return Gain(found[METHOD], found[PLAIN])

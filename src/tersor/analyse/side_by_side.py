"""Several versions of one model on the same sequences, block by block: how far each is from full precision at the end.

Only one block's weights are in memory, and the hidden states of all sequences once for each version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.decoder import Block, Decoder
from tersor.decoder.head import Head
from tersor.kernels.lazy import LazyModule
from tersor.kernels.logits import compare_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["FULL", "Divergence", "Embed", "Rows", "SideBySide"]

Rows: TypeAlias = "Callable[[int, int], Tensor]"
"""Decodes rows from … to … of the output matrix."""
Embed: TypeAlias = "Callable[[Tensor], Tensor]"
"""Embeds token ids [1, tokens]: float32 [1, tokens, hidden]."""
FULL = "full"
"""The side in full precision, which is always there."""
LOGIT_BYTES = 96 << 20
"""Logits of one side held at once."""
HEAD_BYTES = 256 << 20
"""Rows of the output matrix held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """How far a side is from full precision, float64 [sequences].

    kl        mean Kullback-Leibler divergence of a sequence's tokens, nats
    same_top  share of its tokens whose likeliest continuation stays the same
    tokens    of all sequences that were compared
    """

    kl: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.float64]
    tokens: int

    def only(self, rows: npt.NDArray[np.int64]) -> Divergence:
        """Return that of some of the sequences, which are all as long."""
        return Divergence(self.kl[rows], self.same_top[rows], self.tokens // len(self.kl) * len(rows))


@dataclass
class SideBySide:
    """Hidden states of the sequences, once for each side.

    ids  int64 [sequences, tokens]
    """

    decoder: Decoder
    ids: npt.NDArray[np.int64]
    states: dict[str, list[Tensor]] = field(default_factory=dict)

    def begin(self, embeds: Mapping[str, Embed | None]) -> None:
        """Embed the sequences, for each side as its own table does; None: as it stands in the model."""
        full = [self.decoder.embed(torch.from_numpy(row[None])) for row in self.ids]
        self.states = {FULL: full}
        for side, embed in embeds.items():
            self.states[side] = (
                list(full) if embed is None else [embed(torch.from_numpy(row[None])) for row in self.ids]
            )

    def through(self, block: Block, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take all sides through a block; its own weights are back in place afterwards."""
        own = dict(block.weights)
        for side, hidden in self.states.items():
            block.weights.update({**own, **weights.get(side, {})})
            self.states[side] = [block.forward(one) for one in hidden]
        block.weights.update(own)

    def divergences(self, heads: Mapping[str, Rows | None]) -> dict[str, Divergence]:
        """Compare at the end; what decodes rows of a side's output matrix, None: it stays in full precision."""
        kl: dict[str, list[float]] = {side: [] for side in heads}
        same: dict[str, list[float]] = {side: [] for side in heads}
        tokens = 0
        ends = {side: _End(self.decoder, rows) for side, rows in {FULL: None, **heads}.items()}
        for index, row in enumerate(self.ids):
            targets = np.ascontiguousarray(row[1:], dtype=np.int32)
            tokens += len(targets)
            sums = {side: [0.0, 0.0] for side in heads}
            for part in self._parts(len(targets)):
                full = ends[FULL].logits(self.states[FULL][index][:, part])
                for side in heads:
                    found = compare_logits(full, ends[side].logits(self.states[side][index][:, part]), targets[part])
                    sums[side][0] += float(found.divergence.sum())
                    sums[side][1] += float(found.same_top.sum())
            for side, (divergence, equal) in sums.items():
                kl[side].append(divergence / len(targets))
                same[side].append(equal / len(targets))
        return {side: Divergence(np.array(kl[side]), np.array(same[side]), tokens) for side in heads}

    def _parts(self, tokens: int) -> Iterator[slice]:
        step = max(16, LOGIT_BYTES // (4 * self.decoder.vocabulary))
        for start in range(0, tokens, step):
            yield slice(start, min(start + step, tokens))


@dataclass
class _End:
    """The output matrix of one side, some rows at a time; where these are all of them they are read once."""

    decoder: Decoder
    rows: Rows | None
    whole: Head | None = None

    def logits(self, hidden: Tensor) -> npt.NDArray[np.float32]:
        """Return [tokens, vocabulary] of hidden states [1, tokens, hidden]."""
        vocabulary = self.decoder.vocabulary
        step = max(256, HEAD_BYTES // (4 * self.decoder.hidden))
        if step >= vocabulary and self.whole is None:
            self.whole = self._read(0, vocabulary)
        heads = (
            [self.whole]
            if self.whole
            else (self._read(at, min(at + step, vocabulary)) for at in range(0, vocabulary, step))
        )
        made: npt.NDArray[np.float32] = torch.cat([head.forward(hidden)[0] for head in heads], dim=-1).cpu().numpy()
        return np.ascontiguousarray(made)

    def _read(self, start: int, stop: int) -> Head:
        head = self.decoder.head(start, stop)
        if self.rows is not None:
            head.weights[head.matrix] = self.rows(start, stop)
        return head

"""Does it help beyond the calibration text? Three forward passes on sequences that no method has seen.

Full precision, the method's weights and plainly rounded weights go through the model side by side, block by block;
at the end stand the two divergences from the full-precision model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.decoder import Block, Decoder
from tersor.evaluation.statistics import Interval, mean_interval
from tersor.kernels.lazy import LazyModule
from tersor.kernels.logits import compare_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Gain", "HeldOut", "Rows"]

Rows: TypeAlias = "Callable[[int, int], Tensor]"
"""Decodes rows from … to … of the output matrix."""
LOGIT_BYTES = 96 << 20
"""Logits of one side held at once."""
HEAD_BYTES = 256 << 20
"""Rows of the output matrix held at once."""


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
    """Hidden states of the held-out sequences, three times.

    ids  int64 [sequences, tokens]
    """

    decoder: Decoder
    ids: npt.NDArray[np.int64]
    states: dict[str, list[Tensor]] = field(default_factory=dict)

    def begin(self, embed: Callable[[Tensor], Tensor] | None) -> None:
        """Embed the sequences; `embed` gives the embeddings behind the quantized table."""
        full = [self.decoder.embed(torch.from_numpy(row[None])) for row in self.ids]
        rounded = full if embed is None else [embed(one) for one in full]
        self.states = {"full": full, "method": list(rounded), "rtn": list(rounded)}

    def through(self, block: Block, method: Mapping[str, Tensor], rtn: Mapping[str, Tensor]) -> None:
        """Take all sides through a block; its own weights are back in place afterwards."""
        own = dict(block.weights)
        for side, weights in (("full", {}), ("method", method), ("rtn", rtn)):
            block.weights.update({**own, **weights})
            self.states[side] = [block.forward(hidden) for hidden in self.states[side]]
        block.weights.update(own)

    def gain(self, method: Rows | None, rtn: Rows | None) -> Gain:
        """Compare at the end; `method` and `rtn` decode rows of the output matrix, None: it stays in full precision."""
        divergences: dict[str, list[float]] = {"method": [], "rtn": []}
        same: dict[str, list[float]] = {"method": [], "rtn": []}
        tokens = 0
        for index, row in enumerate(self.ids):
            targets = np.ascontiguousarray(row[1:], dtype=np.int32)
            tokens += len(targets)
            sums = {"method": [0.0, 0.0], "rtn": [0.0, 0.0]}
            for part in self._parts(len(targets)):
                full = self._logits("full", index, part, None)
                for side, rows in (("method", method), ("rtn", rtn)):
                    found = compare_logits(full, self._logits(side, index, part, rows), targets[part])
                    sums[side][0] += float(found.divergence.sum())
                    sums[side][1] += float(found.same_top.sum())
            for side, (divergence, equal) in sums.items():
                divergences[side].append(divergence / len(targets))
                same[side].append(equal / len(targets))
        return Gain(
            mean_interval(np.array(divergences["method"])),
            mean_interval(np.array(divergences["rtn"])),
            (float(np.mean(same["method"])), float(np.mean(same["rtn"]))),
            tokens,
        )

    def _parts(self, tokens: int) -> Iterator[slice]:
        step = max(16, LOGIT_BYTES // (4 * self.decoder.vocabulary))
        for start in range(0, tokens, step):
            yield slice(start, min(start + step, tokens))

    def _logits(self, side: str, index: int, part: slice, rows: Rows | None) -> npt.NDArray[np.float32]:
        hidden = self.states[side][index][:, part]
        step = max(256, HEAD_BYTES // (4 * self.decoder.hidden))
        pieces = []
        for start in range(0, self.decoder.vocabulary, step):
            stop = min(start + step, self.decoder.vocabulary)
            head = self.decoder.head(start, stop)
            if rows is not None:
                head.weights[head.matrix] = rows(start, stop)
            pieces.append(head.forward(hidden)[0])
        made: npt.NDArray[np.float32] = torch.cat(pieces, dim=-1).cpu().numpy()
        return np.ascontiguousarray(made)

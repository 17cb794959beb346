"""The second-order divergence of every rounding of every matrix, from one backward pass: cost linear in parameters.

Change the weights by d, and the mean divergence of the predictions is ½ dᵀ F d to second order, F the Fisher matrix of
the model's own predictions. F is never formed: a draw is a random vector v of the logits whose covariance is that of
the predicted tokens, `diag(p) - p pᵀ`, taken back through the model to gradients g of every matrix; the mean of (g·d)²
over draws is dᵀ F d, without bias and with all that happens between the tokens of a sequence in it. g·d of every
candidate is kept, so that matrices can be looked at together too: the mean of the square of their sum is what they
cost together.

Source of the estimate: Martens and Grosse 2015, arXiv:1503.05671 (Fisher from the model's own distribution); of the
allocation by it, Dong et al. 2020, arXiv:1911.03852 (HAWQ-V2). Differs: no trace of F times a mean square error, but
the quadratic form in the very error that the method leaves; v is normal instead of a sampled token, which has the same
covariance and shorter tails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tersor.calibrate.activations import Activations
from tersor.decoder import Block, Decoder
from tersor.decoder.head import Head
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Changes", "Projections", "held_bytes", "project"]

Projections = dict[str, npt.NDArray[np.float32]]
"""GGUF name → [draws, candidates]; the mean square over draws is a divergence in nats per token."""
EMBEDDING = "token_embd.weight"
GRADIENT_BYTES = 256 << 20
"""Gradients of several sequences held at once: their products with the candidates are one matrix product."""
PRIME = 1_000_003
CHANGES_AT_ONCE = 2 << 30
"""Changes of matrices of a block held at once, all candidates: larger blocks are gone back through several times."""
CHANGE_BYTES = 256 << 20
"""Changes of rows of the output matrix held at once, all candidates."""


class Changes(Protocol):
    """What rounding does to the weights."""

    def names(self, layer: int) -> Sequence[str]:
        """Matrices of a block that have candidates; `layer` of the number of blocks: those outside the blocks."""
        ...

    def count(self, name: str) -> int:
        """How many candidates a matrix has."""
        ...

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return candidates less the weights, float32 [candidates, rows from start to stop, columns]."""
        ...


def project(
    decoder: Decoder,
    ids: npt.NDArray[np.int64],
    changes: Changes,
    *,
    seed: int = 0,
    spill: Path | None = None,
    progress: Callable[[int, float], None] = lambda _layer, _share: None,
) -> Projections:
    """Return g·d of every candidate, one draw a sequence of `ids`, int64 [sequences, tokens].

    spill     folder for the hidden states before every block; None: in memory
    progress  called with (steps done, share of the step), of twice the blocks and one
    """
    with torch.no_grad():
        return _Pass(decoder, ids, changes, seed, spill, progress).run()


def held_bytes(decoder: Decoder, sequences: int, tokens: int, candidates: int) -> tuple[int, int]:
    """Return bytes that `project` holds at most beside hidden states, and those of all hidden states.

    candidates  of a matrix, at most
    """
    largest = max((decoder.block_nbytes(layer) for layer in range(decoder.layers)), default=0)
    changes, gradients = min(CHANGES_AT_ONCE, candidates * largest), min(GRADIENT_BYTES, sequences * largest)
    states = 4 * (decoder.layers + 2) * sequences * tokens * decoder.hidden
    return 2 * largest + changes + max(gradients, largest), states


@dataclass
class _Pass:
    decoder: Decoder
    ids: npt.NDArray[np.int64]
    changes: Changes
    seed: int
    spill: Path | None
    progress: Callable[[int, float], None]
    found: Projections = field(default_factory=dict)

    def run(self) -> Projections:
        before = self._forward()
        gradient = self._head(before.pop())
        for layer in reversed(range(self.decoder.layers)):
            gradient = self._block(layer, before.pop(), gradient)
            self.progress(2 * self.decoder.layers - layer, 1.0)
        self._embedding(gradient)
        scale = np.float32((2 * self.ids.shape[1]) ** -0.5)
        return {name: values * scale for name, values in self.found.items()}

    def _states(self) -> Activations:
        sequences, tokens = self.ids.shape
        return Activations(sequences, tokens, self.decoder.hidden, chunk=1, spill=self.spill)

    def _forward(self) -> list[Activations]:
        """The hidden states before every block, and behind the last."""
        kept = [self._states()]
        for part in kept[0].chunks():
            kept[0].write(part, self.decoder.embed(torch.from_numpy(self.ids[part])))
        for layer in range(self.decoder.layers):
            block, after = self.decoder.block(layer), self._states()
            for part in after.chunks():
                after.write(part, block.forward(kept[-1].read(part)))
            kept.append(after)
            self.progress(layer, 1.0)
        return kept

    def _add(self, name: str, draws: slice, values: Tensor) -> None:
        whole = self.found.setdefault(name, np.zeros((len(self.ids), self.changes.count(name)), np.float32))
        whole[draws] += values.numpy()

    def _head(self, hidden: Activations) -> Activations:
        """Draw, project what the output matrix sees, and return the gradients of the states behind the blocks."""
        head = _HeadPass(self.decoder, hidden, self.seed)
        outside = self.changes.names(self.decoder.layers)
        name = self.decoder.matrix if self.decoder.matrix in outside else None
        gradient = self._states()
        for rows, matrix in head.slices(self.changes.count(name) if name else 1):
            change = None if name is None else self.changes.read(name, rows.start, rows.stop).flatten(1)
            for part in hidden.chunks():
                normed, drawn = head.drawn(part, rows, matrix)
                gradient.write(part, gradient.read(part) + drawn @ matrix)
                if name is not None and change is not None:
                    self._add(name, part, ((drawn.transpose(1, 2) @ normed).flatten(1) @ change.T))
        for part in hidden.chunks():
            gradient.write(part, head.through_norm(hidden.read(part), gradient.read(part)))
        return gradient

    def _block(self, layer: int, hidden: Activations, gradient: Activations) -> Activations:
        """Project what a block sees, and return the gradients of its inputs."""
        block = self.decoder.block(layer)
        names = [name for name in self.changes.names(layer) if name in block.weights]
        before = self._states()
        for rows in self._groups({name: block.weights[name] for name in names}):
            changes = {name: self.changes.read(name, part.start, part.stop).flatten(1) for name, part in rows}
            self._projected(block, rows, changes, (hidden, gradient, before))
        return before

    def _groups(self, weights: Mapping[str, Tensor]) -> list[list[tuple[str, slice]]]:
        """Split matrices into rows whose changes are held together; each group is a pass back through the block."""
        groups: list[list[tuple[str, slice]]] = []
        left = 0
        for name, weight in weights.items():
            of_a_row = 4 * weight.shape[-1] * self.changes.count(name)
            rows, start = weight.numel() // weight.shape[-1], 0
            while start < rows:
                if left < of_a_row:
                    groups.append([])
                    left = CHANGES_AT_ONCE
                stop = min(rows, start + max(1, left // of_a_row))
                groups[-1].append((name, slice(start, stop)))
                left -= (stop - start) * of_a_row
                start = stop
        return groups or [[]]  # gradients go back through a block without candidates too

    def _projected(
        self,
        block: Block,
        rows: Sequence[tuple[str, slice]],
        changes: Mapping[str, Tensor],
        states: tuple[Activations, Activations, Activations],
    ) -> None:
        """Go back through a block; `states`: its inputs, gradients of its outputs, where those of its inputs go."""
        hidden, gradient, before = states
        held = max(1, GRADIENT_BYTES // max(block.nbytes, 1))
        waiting: dict[str, list[Tensor]] = {}
        count = 0
        for part in hidden.chunks():
            found, slopes = _gradients(block, [name for name, _ in rows], hidden.read(part), gradient.read(part))
            before.write(part, found)
            for (name, taken), values in zip(rows, slopes, strict=True):
                waiting.setdefault(name, []).append(values.reshape(-1, values.shape[-1])[taken].flatten())
            count += 1
            if count >= held or part.stop == len(self.ids):
                draws = slice(part.stop - count, part.stop)
                for name, one in waiting.items():
                    self._add(name, draws, torch.stack(one) @ changes[name].T)
                waiting.clear()
                count = 0

    def _embedding(self, gradient: Activations) -> None:
        """Project what the rows of the table that a sequence names bring into it."""
        if EMBEDDING not in self.changes.names(self.decoder.layers):
            return
        count, width = self.changes.count(EMBEDDING), self.decoder.hidden
        step = max(1, CHANGE_BYTES // (4 * count * width))
        for start in range(0, self.decoder.vocabulary, step):
            stop = min(start + step, self.decoder.vocabulary)
            change = self.changes.read(EMBEDDING, start, stop) * self.decoder.embedding_scale
            for part in gradient.chunks():
                rows = torch.from_numpy(self.ids[part].reshape(-1))
                inside = (rows >= start) & (rows < stop)
                slopes = gradient.read(part).flatten(0, 1)[inside]
                self._add(EMBEDDING, part, (change[:, rows[inside] - start] * slopes).sum(dim=(1, 2))[None])


def _gradients(
    block: Block, names: Sequence[str], hidden: Tensor, gradient: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the gradients of the block's input and of its matrices `names`, given that of its output."""
    twin = block.twin()
    with torch.enable_grad():
        leaf = hidden.requires_grad_()
        leaves = [block.weights[name].detach().requires_grad_() for name in names]
        twin.weights.update(zip(names, leaves, strict=True))
        found = torch.autograd.grad(twin.traced(leaf), [leaf, *leaves], gradient, materialize_grads=True)
    return found[0], tuple(found[1:])


@dataclass
class _HeadPass:
    """Draws of the logits, some rows of the output matrix at a time: first what whole predictions have to know.

    A draw is √p·ξ - p·(√p·ξ), ξ normal: its covariance is diag(p) - p pᵀ.
    """

    decoder: Decoder
    hidden: Activations
    seed: int
    norm: Head = field(init=False)
    log_sums: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.norm = self.decoder.head(0, 0)

    def slices(self, candidates: int) -> _Slices:
        """Yield rows of the output matrix; `drawn` can be asked for from then on."""
        step = max(64, CHANGE_BYTES // (4 * candidates * self.decoder.hidden))
        steps = _Slices(self.decoder, step)
        for rows, matrix in steps:
            for part in self.hidden.chunks():
                found = torch.logsumexp(self._logits(part, matrix), -1, keepdim=True)
                known = self.log_sums.get(part.start)
                self.log_sums[part.start] = found if known is None else torch.logaddexp(known, found)
            del rows
        for rows, matrix in steps:
            for part in self.hidden.chunks():
                root = ((self._logits(part, matrix) - self.log_sums[part.start]) / 2).exp_()
                share = (root * self._noise(part, rows)).sum(-1, keepdim=True)
                self.shares[part.start] = self.shares.get(part.start, torch.zeros_like(share)) + share
        return steps

    def drawn(self, part: slice, rows: slice, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the matrix reads [sequences, tokens, hidden], and the draw for its rows."""
        logits = self._logits(part, matrix)
        root = ((logits - self.log_sums[part.start]) / 2).exp_()
        made = root * (self._noise(part, rows) - root * self.shares[part.start])
        cap = self.decoder.logit_cap
        if cap is not None:
            made *= 1 - (logits / cap).square()
        return self._normed(part), made

    def through_norm(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the hidden states, given that of what the matrix reads."""
        with torch.enable_grad():
            leaf = hidden.requires_grad_()
            read = self.norm.inputs(leaf).values.view_as(leaf)
            return torch.autograd.grad(read, leaf, gradient)[0]

    def _normed(self, part: slice) -> Tensor:
        hidden = self.hidden.read(part)
        return self.norm.inputs(hidden).values.view_as(hidden)

    def _logits(self, part: slice, matrix: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(self._normed(part), matrix)
        cap = self.decoder.logit_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _noise(self, part: slice, rows: slice) -> Tensor:
        """The same normal numbers whenever they are asked for."""
        made = torch.Generator().manual_seed(((self.seed * PRIME + part.start) * PRIME + rows.start) % 2**63)
        states = self.hidden.read(part)
        return torch.randn((*states.shape[:2], rows.stop - rows.start), generator=made)


@dataclass(frozen=True)
class _Slices:
    """Rows of the output matrix, read anew each time; all of them at once are read once."""

    decoder: Decoder
    step: int
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        vocabulary = self.decoder.vocabulary
        for start in range(0, vocabulary, self.step):
            rows = slice(start, min(start + self.step, vocabulary))
            matrix = self.kept.get(start)
            if matrix is None:
                head = self.decoder.head(rows.start, rows.stop)
                matrix = head.weights[head.matrix]
            if self.step >= vocabulary:
                self.kept[start] = matrix
            yield rows, matrix

"""Block by block through a model: gather what each matrix sees, have it quantized, go on with what it became.

Only one block's weights are in memory, and the hidden states of the calibration sequences once or, for methods that
correct the errors of earlier layers, twice: behind the quantized prefix and in full precision.

A block is taken in steps: the matrices of a step share their inputs, and what they became makes the inputs of the next.
What lies between the steps of a block is computed again rather than kept: two passes over a block in all, and one for
the full-precision states, which no step changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.activations import Activations
from tersor.calibrate.sequences import Sequences
from tersor.decoder import Block, Decoder, Seen
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["PAIRED", "Input", "Needs", "Setting", "Visitor", "run_blocks"]

Weights = Mapping[str, "Tensor"]
PAIRED = 0.75
"""Share of the calibration sequences that also go through the full-precision model, where a method asks for that.

What they tell is a small difference, and fewer do: a quarter of a second pass and of its products is saved, 1 % of
divergence lost (docs/log.md)."""
STEPS = 2
"""Of half a block: matrices that read its norm, and those that need what they make."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method needs to know of a matrix's input.

    peaks    the largest value of each column
    squares  False: nothing at all, where the input costs something to get
    """

    hessian: bool = False
    cross: bool = False
    peaks: bool = False
    squares: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One input of a block, and what it added up to.

    names   the GGUF names of the matrices that take it
    expert  which of the stacked matrices, None where they are not stacked
    """

    names: tuple[str, ...]
    expert: int | None
    sums: Sums


class Visitor(Protocol):
    """Who turns the matrices of a block into others."""

    def needs(self, name: str) -> Needs:
        """What this matrix needs; asked before the block runs."""
        ...

    def finished(self, layer: int) -> Weights | None:
        """The block's matrices as they became in an earlier run, dequantized; None: not done yet."""
        ...

    def visit(self, layer: int, weights: Weights, inputs: list[Input]) -> Weights:
        """Return the matrices that take these inputs as they became, and what else was changed, dequantized, by name.

        Called for every step of a block, with all of the block's own weights. For the matrix behind the blocks `layer`
        is their number, and `weights` empty.
        """
        ...

    def finish(self, layer: int) -> None:
        """Called after the last step of a block, and of the matrix behind them."""
        ...

    def passed(self, block: Block, became: Weights) -> None:
        """Called once for every block, finished earlier or now, while `block` still has its own weights."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """How to go through the model.

    stepwise inputs are gathered behind what the block's earlier steps became; False: behind its own weights, all in
             one pass, for what changes matrices of several steps together
    chunk    sequences at once; together with the data it shapes the sums, so it is part of what a result depends on
    spill    folder for the hidden states; None: keep them in memory
    cross    keep full-precision hidden states too
    paired   of this share of every chunk
    embed    the embeddings behind the quantized table, given those in full precision; None: they stay as they are
    stage    called with a name, wraps the work of that name: for clocks
    progress called with (layer, share of the layer that is done)
    """

    stepwise: bool = True
    chunk: int = 4
    device: str = "cpu"
    spill: Path | None = None
    cross: bool = False
    paired: float = PAIRED
    embed: Callable[[Tensor], Tensor] | None = None
    stage: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    progress: Callable[[int, float], None] = lambda _layer, _share: None


def run_blocks(decoder: Decoder, sequences: Sequences, visitor: Visitor, setting: Setting) -> None:
    """Take `visitor` through every block and then the output matrix.

    Under several ranks each goes through its own part of the sequences; adding up is the visitor's work.
    """
    _Run(decoder, sequences, visitor, setting).run()


Key = tuple[tuple[str, ...], "int | None"]


@dataclass
class _Run:
    decoder: Decoder
    sequences: Sequences
    visitor: Visitor
    setting: Setting
    is_split: bool = field(default=False, init=False)
    """Whether the full-precision states are kept beside those behind the quantized prefix: they are the same before."""

    def run(self) -> None:
        setting, decoder = self.setting, self.decoder
        count, tokens = self.sequences.ids.shape
        self.hidden = Activations(count, tokens, decoder.hidden, chunk=setting.chunk, spill=setting.spill)
        pairs = sum(self._paired(part) for part in self.hidden.chunks())
        self.full = (
            Activations(pairs, tokens, decoder.hidden, chunk=self._paired(slice(0, setting.chunk)), spill=setting.spill)
            if setting.cross
            else None
        )
        with setting.stage("forward"):
            for part in self.hidden.chunks():
                embedded = decoder.embed(torch.from_numpy(self.sequences.ids[part]))
                if setting.embed is not None and self.full is not None:
                    self._write_full(part, embedded[: self._paired(part)])
                self.hidden.write(part, embedded if setting.embed is None else setting.embed(embedded))
        self.is_split = setting.embed is not None
        for layer in range(decoder.layers):
            with setting.stage("reading"):
                block = decoder.block(layer)
            self._block(layer, block)
        self._output()

    def _block(self, layer: int, block: Block) -> None:
        done, became = self.visitor.finished(layer), block.twin()
        if done is None:
            done = (
                self._stepwise(layer, block, became) if self.setting.stepwise else self._at_once(layer, block, became)
            )
            self.visitor.finish(layer)
        else:
            became.weights.update(done)
            for number in range(len(block.halves)):
                self._advance_full(block, number)
                self._advance(became, number)
        self.visitor.passed(block, done)
        self.setting.progress(layer, 1.0)

    def _stepwise(self, layer: int, block: Block, became: Block) -> Weights:
        done: dict[str, Tensor] = {}
        for number in range(len(block.halves)):
            for step in range(STEPS):
                inputs = self._gather(block, became, number, step)
                made = self.visitor.visit(layer, block.weights, inputs)
                done.update(made)
                became.weights.update(made)
                self.setting.progress(layer, (STEPS * number + step + 1) / (2 * STEPS + 1))
            self._advance(became, number)
        return done

    def _at_once(self, layer: int, block: Block, became: Block) -> Weights:
        """Gather the inputs of all steps behind the block's own weights; the states go on behind what it became."""
        found: dict[Key, Input] = {}
        for part in self.hidden.chunks():
            with self.setting.stage("gathering"):
                self._pass(block, part, found)
        done = self.visitor.visit(layer, block.weights, list(found.values()))
        became.weights.update(done)
        for number in range(len(block.halves)):
            self._advance(became, number)
        return done

    def _pass(self, block: Block, part: slice, found: dict[Key, Input]) -> None:
        full, hidden = self._full(part) if self.full is not None else None, self._read(self.hidden, part)
        for half in block.halves:
            theirs = _Walk(half(full)) if full is not None else None
            ours = _Walk(half(hidden))
            for seen in ours:
                pair = theirs.at(seen.step) if theirs is not None and seen.expert is None else None
                self._add(found, seen, pair)
            hidden, full = ours.made, None if theirs is None else theirs.rest()
        if full is not None:
            self._write_full(part, full)

    def _gather(self, block: Block, became: Block, number: int, step: int) -> list[Input]:
        """Sum up what the matrices of one step see; the last step takes the full-precision states along."""
        is_last = step == STEPS - 1 and self._goes_on(block, number)
        found: dict[Key, Input] = {}
        for part in self.hidden.chunks():
            with self.setting.stage("gathering"):
                is_same = not self.is_split and not number and not step  # nothing has been quantized so far
                theirs = _Walk(block.halves[number](self._full(part))) if self.full is not None else None
                for seen in _Walk(became.halves[number](self._read(self.hidden, part))):
                    if seen.step != step:
                        continue
                    pair = theirs.at(step) if theirs is not None and seen.expert is None and not is_same else None
                    self._add(found, seen, pair)
                    if seen.expert is None:
                        break  # the only input of its step
                if is_last and theirs is not None:
                    self._write_full(part, theirs.rest())
        return list(found.values())

    def _advance(self, became: Block, number: int) -> None:
        """Take the states behind the quantized prefix through half a block, unless nobody asks what they become."""
        if self._goes_on(became, number):
            for part in self.hidden.chunks():
                with self.setting.stage("forward"):
                    self.hidden.write(part, _Walk(became.halves[number](self._read(self.hidden, part))).rest())
            self.is_split = True

    def _advance_full(self, block: Block, number: int) -> None:
        """Take the full-precision states through half a block where no inputs are gathered on the way."""
        if self.full is not None and self._goes_on(block, number):
            for part in self.hidden.chunks():
                with self.setting.stage("forward"):
                    self._write_full(part, _Walk(block.halves[number](self._full(part))).rest())

    def _goes_on(self, block: Block, number: int) -> bool:
        """Whether somebody asks what the states become in this half of a block."""
        is_last = block.layer == self.decoder.layers - 1 and number == len(block.halves) - 1
        return not is_last or self._wants_output

    def _output(self) -> None:
        """The matrix behind the last block: it sees the normalised hidden states."""
        layer, head = self.decoder.layers, self.decoder.head(0, 0)  # no rows: we want what they would see
        if self.visitor.finished(layer) is not None:
            return
        unseen = Input((head.matrix,), None, Sums.empty(self.decoder.hidden, hessian=False, cross=False))
        found: dict[Key, Input] = {} if self._wants_output else {(unseen.names, None): unseen}
        for part in self.hidden.chunks() if self._wants_output else ():
            with self.setting.stage("gathering"):
                seen = head.inputs(self._read(self.hidden, part))
                self._add(found, seen, None if self.full is None else head.inputs(self._full(part)))
        self.visitor.visit(layer, {}, list(found.values()))
        self.visitor.finish(layer)
        self.setting.progress(layer, 1.0)

    @property
    def _wants_output(self) -> bool:
        return self.visitor.needs(self.decoder.matrix).squares

    def _add(self, found: dict[Key, Input], seen: Seen, full: Seen | None) -> None:
        """Add what is seen; `full` is the same in the full-precision model, None: not to be had, or equal."""
        names, values = seen.names, seen.values
        one = found.get((names, seen.expert))
        if one is None:
            needs = [self.visitor.needs(name) for name in names]
            # Another router decision sends other tokens: the inputs of experts cannot be paired.
            hessian, cross = any(n.hessian for n in needs), seen.expert is None and any(n.cross for n in needs)
            peaks, device = any(n.peaks for n in needs), str(values.device)
            sums = Sums.empty(values.shape[-1], hessian=hessian, cross=cross, peaks=peaks, device=device)
            one = found[names, seen.expert] = Input(names, seen.expert, sums)
        one.sums.add(values)
        if one.sums.lag is None or full is None:
            return
        count, lacking = len(full.values), None
        if full.stream is not None and seen.stream is not None:
            lacking = full.stream - seen.stream[:count]
        one.sums.add_pair(values[:count], full.values, lacking)

    def _paired(self, part: slice) -> int:
        """How many sequences of a chunk, its first ones, have a full-precision twin."""
        count: int = part.stop - part.start
        return math.ceil(count * self.setting.paired)

    def _place(self, part: slice) -> slice:
        """Where the twins of a chunk lie."""
        start = part.start // self.setting.chunk * self._paired(slice(0, self.setting.chunk))
        return slice(start, start + self._paired(part))

    def _full(self, part: slice) -> Tensor:
        assert self.full is not None
        if self.is_split:
            return self._read(self.full, self._place(part))
        return self._read(self.hidden, slice(part.start, part.start + self._paired(part)))

    def _write_full(self, part: slice, values: Tensor) -> None:
        if self.full is not None:
            self.full.write(self._place(part), values)

    def _read(self, states: Activations, part: slice) -> Tensor:
        return states.read(part, self.setting.device)


class _Walk:
    """Goes through half a block and keeps what it comes to."""

    def __init__(self, walk: Generator[Seen, None, Tensor]) -> None:
        self._walk = walk

    def __iter__(self) -> Iterator[Seen]:
        self.made = yield from self._walk

    def at(self, step: int) -> Seen:
        """Go on to the first input of a step."""
        return next(seen for seen in self._walk if seen.step == step)

    def rest(self) -> Tensor:
        """Go on to the end."""
        for _ in self:
            pass
        return self.made

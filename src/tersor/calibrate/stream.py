"""Block by block through a model: gather what each matrix sees, have it quantized, go on with what it became.

Only one block's weights are in memory, and the hidden states of the calibration sequences once or, for methods that
correct the errors of earlier layers, twice: behind the quantized prefix and in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.activations import Activations
from tersor.calibrate.sequences import Sequences
from tersor.decoder import Block, Decoder
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Input", "Needs", "Setting", "Visitor", "run_blocks"]

Weights = Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method needs to know of a matrix's input, beyond the squares."""

    hessian: bool = False
    cross: bool = False


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
        """Return the block's matrices as they became, dequantized, by GGUF name.

        `layer` is the number of blocks, and `weights` empty, for the matrix behind them.
        """
        ...

    def passed(self, block: Block, became: Weights) -> None:
        """Called once for every block, finished earlier or now, while `block` still has its own weights."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """How to go through the model.

    chunk    sequences at once; together with the data it shapes the sums, so it is part of what a result depends on
    spill    folder for the hidden states; None: keep them in memory
    cross    keep the full-precision hidden states too
    embed    the embeddings behind the quantized table, given those in full precision; None: they stay as they are
    stage    called with a name, wraps the work of that name: for clocks
    progress called with (layer, share of the layer that is done)
    """

    chunk: int = 8
    device: str = "cpu"
    spill: Path | None = None
    cross: bool = False
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
    """Whether the full-precision states differ from those behind the quantized prefix."""

    def run(self) -> None:
        setting, decoder = self.setting, self.decoder
        count, tokens = self.sequences.ids.shape
        shape = (count, tokens, decoder.hidden)
        self.hidden = Activations(*shape, chunk=setting.chunk, spill=setting.spill)
        self.full = Activations(*shape, chunk=setting.chunk, spill=setting.spill) if setting.cross else None
        with setting.stage("forward"):
            for part in self.hidden.chunks():
                embedded = decoder.embed(torch.from_numpy(self.sequences.ids[part]))
                if setting.embed is not None and self.full is not None:
                    self.full.write(part, embedded)
                self.hidden.write(part, embedded if setting.embed is None else setting.embed(embedded))
        self.is_split = setting.embed is not None
        for layer in range(decoder.layers):
            with setting.stage("reading"):
                block = decoder.block(layer)
            self._block(layer, block)
        self._output()

    def _block(self, layer: int, block: Block) -> None:
        done = self.visitor.finished(layer)
        if done is None:
            inputs = self._gather(layer, block)
            done = self.visitor.visit(layer, block.weights, inputs)
        elif self.full is not None:
            with self.setting.stage("forward"):
                for part in self.hidden.chunks():
                    self.full.write(part, block.forward(self._full(part)))
        self.visitor.passed(block, done)
        block.weights.update(done)
        with self.setting.stage("forward"):
            for part in self.hidden.chunks():
                self.hidden.write(part, block.forward(self._read(self.hidden, part)))
        self.is_split = True
        self.setting.progress(layer, 1.0)

    def _gather(self, layer: int, block: Block) -> list[Input]:
        """Run the block with its own weights and sum up what its matrices see; moves the full-precision states on."""
        found: dict[Key, Input] = {}
        parts = list(self.hidden.chunks())
        for index, part in enumerate(parts):
            with self.setting.stage("gathering"):
                if self.full is not None and self.is_split:
                    seen: dict[Key, Tensor] = {}
                    streams: dict[str, Tensor] = {}
                    made = block.forward(self._full(part), _Keeper(seen), _Stream(streams))
                    adder = _Adder(self, found, seen, streams)
                    block.forward(self._read(self.hidden, part), adder, adder.residual)
                else:
                    made = block.forward(self._read(self.hidden, part), _Adder(self, found, None))
            if self.full is not None:
                self.full.write(part, made)
            self.setting.progress(layer, 0.5 * (index + 1) / len(parts))
        return list(found.values())

    def _output(self) -> None:
        """The matrix behind the last block: it sees the normalised hidden states."""
        layer, head = self.decoder.layers, self.decoder.head(0, 0)  # no rows: we want what they would see
        if self.visitor.finished(layer) is not None:
            return
        found: dict[Key, Input] = {}
        for part in self.hidden.chunks():
            with self.setting.stage("gathering"):
                seen: dict[Key, Tensor] = {}
                if self.full is not None:
                    head.forward(self._full(part), _Keeper(seen))
                head.forward(self._read(self.hidden, part), _Adder(self, found, seen if self.full else None))
        self.visitor.visit(layer, {}, list(found.values()))
        self.setting.progress(layer, 1.0)

    def _full(self, part: slice) -> Tensor:
        assert self.full is not None
        return self._read(self.full if self.is_split else self.hidden, part)

    def _read(self, states: Activations, part: slice) -> Tensor:
        return states.read(part, self.setting.device)


@dataclass(frozen=True)
class _Keeper:
    """Observes the full-precision pass."""

    seen: dict[Key, Tensor]

    def __call__(self, names: tuple[str, ...], values: Tensor, expert: int | None) -> None:
        if expert is None:  # another router decision sends other tokens: experts' inputs cannot be paired
            self.seen[names, expert] = values.clone()


@dataclass(frozen=True)
class _Stream:
    """Keeps the residual stream of the full-precision pass."""

    streams: dict[str, Tensor]

    def __call__(self, name: str, hidden: Tensor) -> None:
        self.streams[name] = hidden.clone()


@dataclass(frozen=True)
class _Adder:
    """Observes the pass behind the quantized prefix; `seen` None: both passes are the same."""

    run: _Run
    found: dict[Key, Input]
    seen: dict[Key, Tensor] | None
    streams: dict[str, Tensor] = field(default_factory=dict)

    def residual(self, name: str, hidden: Tensor) -> None:
        """Leave in `streams` how far the full-precision stream is from this one."""
        self.streams[name] -= hidden

    def __call__(self, names: tuple[str, ...], values: Tensor, expert: int | None) -> None:
        one = self.found.get((names, expert))
        if one is None:
            needs = [self.run.visitor.needs(name) for name in names]
            hessian, cross = any(n.hessian for n in needs), expert is None and any(n.cross for n in needs)
            sums = Sums.empty(values.shape[-1], hessian=hessian, cross=cross, device=str(values.device))
            one = self.found[names, expert] = Input(names, expert, sums)
        if one.sums.cross is None:
            one.sums.add(values)
            return
        one.sums.add(values, values if self.seen is None else self.seen[names, expert])
        if len(names) == 1 and names[0] in self.streams:
            one.sums.add_residual(values, self.streams[names[0]])

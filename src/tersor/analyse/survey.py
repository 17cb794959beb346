"""Every candidate of every matrix, made block by block while the calibration text goes through the model; kept on disk.

A survey that is stopped goes on from its last finished block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tersor.analyse.candidates import Errors, candidate, inputs_by_name
from tersor.analyse.ranges import Ranges, ranges_of
from tersor.calibrate.accumulate import Sums
from tersor.calibrate.stream import Input, Needs
from tersor.calibrate.workspace import Finished, Workspace
from tersor.core.errors import FormatError, ShapeError, TersorError
from tersor.core.tensor import QuantizedTensor
from tersor.decoder import Block
from tersor.kernels.lazy import LazyModule
from tersor.methods import Method
from tersor.models.model import ModelTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Surveyed", "Surveyor"]

SEPARATOR = "@"


@dataclass
class Surveyor:
    """The visitor that changes nothing and keeps what every matrix would become.

    formats   GGUF name → the formats that it may take; matrices without are passed by
    sources   GGUF name → where its weights are read
    method    the method's name and row
    layers    blocks of the model
    """

    formats: Mapping[str, Sequence[str]]
    sources: Mapping[str, ModelTensor]
    method: tuple[str, Method]
    layers: int
    workspace: Workspace
    threads: int = 0
    stage: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    pending: Finished = field(default_factory=lambda: Finished({}, {}))

    def needs(self, name: str) -> Needs:
        """The Hessian where the method can use it, which tells output errors too; of others nothing."""
        return Needs(hessian=True, peaks=True) if name in self.formats else Needs(squares=False)

    def finished(self, layer: int) -> Mapping[str, Tensor] | None:
        """Nothing has changed in a block whose candidates are there."""
        return None if self.workspace.load(layer) is None else {}

    def visit(self, layer: int, weights: Mapping[str, Tensor], inputs: list[Input]) -> Mapping[str, Tensor]:
        """Round the matrices that take these inputs."""
        tensors, notes = dict(self.pending.tensors), dict(self.pending.notes)
        for name, sums in inputs_by_name(inputs).items():
            if name in self.formats:
                if not all(one.is_finite() for one in sums.values()):
                    raise FormatError(f"block {layer}, input of {name}: the activations are not finite")
                weight = weights[name] if name in weights else self._weight(name)
                self._round(name, weight, sums, tensors, notes)
        self.pending = Finished(tensors, notes)
        return {}

    def finish(self, layer: int) -> None:
        """Keep the candidates of the block, and behind the last those of matrices that no input is known of."""
        if layer == self.layers:
            tensors, notes = dict(self.pending.tensors), dict(self.pending.notes)
            made = {key.rpartition(SEPARATOR)[0] for key in tensors}
            outside = [name for name in self.formats if self.sources[name].layer is None and name not in made]
            for name in outside:
                self._round(name, self._weight(name), {}, tensors, notes)
            self.pending = Finished(tensors, notes)
        self.workspace.save(layer, self.pending)
        self.pending = Finished({}, {})

    def passed(self, block: Block, became: Mapping[str, Tensor]) -> None:
        """Nothing became of it."""
        del block, became

    def _weight(self, name: str) -> Tensor:
        source = self.sources[name]
        return torch.from_numpy(source.read(0, source.rows)).reshape(source.shape)

    def _round(
        self,
        name: str,
        weight: Tensor,
        sums: Mapping[int | None, Sums],
        tensors: dict[str, QuantizedTensor],
        notes: dict[str, Mapping[str, Any]],
    ) -> None:
        """Add the candidates of a matrix; a note on each tells its errors, and the first the ranges of all."""
        hessians: dict[int | None, Tensor | None] = {}
        only = next(iter(sums.values())) if len(sums) == 1 else None
        ranges = asdict(ranges_of(weight, only))
        with self.stage("rounding"):
            for kind in self.formats[name]:
                try:
                    made, errors = candidate(weight, kind, self.method, sums, hessians=hessians, threads=self.threads)
                except TersorError as error:
                    raise type(error)(f"{name} as {kind} by {self.method[0]}: {error}") from error
                tensors[_key(name, kind)] = made
                notes[_key(name, kind)] = {"errors": errors.to_object(), "ranges": ranges}


def _key(name: str, kind: str) -> str:
    return f"{name}{SEPARATOR}{kind}"


@dataclass(frozen=True, eq=False)
class Surveyed:
    """The candidates of a finished survey, read block by block when asked for.

    formats   as the surveyor had them
    sources   GGUF name → where its weights are read
    """

    workspace: Workspace
    formats: Mapping[str, Sequence[str]]
    sources: Mapping[str, ModelTensor]
    layers: int

    def names(self, layer: int) -> Sequence[str]:
        """Matrices of a block that have candidates; `layer` of the number of blocks: those outside the blocks."""
        wanted = None if layer == self.layers else layer
        return [name for name in self.formats if self.sources[name].layer == wanted]

    def count(self, name: str) -> int:
        """How many candidates a matrix has."""
        return len(self.formats[name])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return candidates less the weights, float32 [candidates, rows from start to stop, columns]."""
        weight = torch.from_numpy(self.sources[name].read(start, stop))
        return torch.stack([self.values(name, kind, start, stop) - weight for kind in self.formats[name]])

    def values(self, name: str, format_name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows of a candidate, float32 [rows, columns]; without `stop` up to the last."""
        tensor = self._tensor(name, format_name)
        return torch.from_numpy(tensor.format.decode(tensor.data[start:stop], tensor.shape[-1]))

    def picked(self, name: str, format_name: str, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return single rows of a candidate, float32 [rows, columns]."""
        tensor = self._tensor(name, format_name)
        return torch.from_numpy(tensor.format.decode(tensor.data[rows], tensor.shape[-1]))

    def errors(self, name: str) -> dict[str, Errors]:
        """Return what rounding costs, by format."""
        notes = self._load(self._layer(name)).notes
        return {kind: Errors(**notes[_key(name, kind)]["errors"]) for kind in self.formats[name]}

    def ranges(self, name: str) -> Ranges:
        """Return what the numbers of a matrix are like."""
        notes = self._load(self._layer(name)).notes
        return Ranges(**notes[_key(name, self.formats[name][0])]["ranges"])

    def _tensor(self, name: str, format_name: str) -> QuantizedTensor:
        return self._load(self._layer(name)).tensors[_key(name, format_name)]

    def _layer(self, name: str) -> int:
        layer = self.sources[name].layer
        return self.layers if layer is None else layer

    def _load(self, layer: int) -> Finished:
        return _kept(self.workspace, layer)


@lru_cache(maxsize=2)
def _kept(workspace: Workspace, layer: int) -> Finished:
    found = workspace.load(layer)
    if found is None:
        raise ShapeError(f"the candidates of block {layer} were never made")
    return found

"""Every matrix of a block through its method: weighed against plain rounding, shared among ranks, kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tersor.calibrate.ranks import Ranks, deal
from tersor.calibrate.stream import Input, Needs
from tersor.calibrate.workspace import Finished, Workspace
from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import FormatError, TersorError
from tersor.core.format import Format
from tersor.core.plan import PlannedTensor
from tersor.core.tensor import QuantizedTensor
from tersor.decoder import Block, Decoder
from tersor.formats import get
from tersor.kernels.lazy import LazyModule
from tersor.methods import Method, output_error
from tersor.models.model import ModelTensor
from tersor.pipeline.calibrated.held_out import HeldOut
from tersor.pipeline.calibrated.outcome import Outcome
from tersor.pipeline.calibrated.rewrites import apply, producer_of, rescale
from tersor.pipeline.steps.stages import Clock
from tersor.targets.memory import give_back

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["PLAIN", "BlockQuantizer", "check_finite", "wanted"]

PLAIN = ("f32", "f16", "bf16")
"""Formats whose rounding no statistic can better."""
Given: TypeAlias = "Mapping[str, Tensor | None]"
"""Statistics by name: hessian, cross, residual."""
ROWS_AT_ONCE = 1 << 26
"""Weights of the output matrix that are worked on at a time; rows do not depend on one another."""


def wanted(method: Method, rewrites: tuple[str, ...]) -> Needs:
    """What a method and the rewrites before it can make use of."""
    uses = (*method.needs, *method.uses)
    hessian = "hessian" in uses or bool(rewrites)
    return Needs(hessian=hessian, cross="cross" in uses, peaks="smoothquant" in rewrites)


def check_finite(layer: int, inputs: list[Input]) -> None:
    """Raise FormatError where what a block sees has NaN or infinities in it."""
    for one in inputs:
        if not one.sums.is_finite():
            where = f"block {layer}, input of {one.names[0]}" + ("" if one.expert is None else f" {one.expert}")
            raise FormatError(
                f"{where}: the activations are not finite (NaN or infinity); the model overflows on this text, "
                "or its weights are damaged: tersor verify tells"
            )


@dataclass
class BlockQuantizer:
    """The Visitor of a calibrated run.

    plan      GGUF name → what it becomes
    sources   GGUF name → where its weights are read
    method    for every matrix that has an input and a format worth it, and its name
    rewrites  what is done to a block before, by the names in REWRITES
    held_out  sequences that prove the gain; None: no proof is made
    is_summed whether every rank has the sums over all text already
    search    of plain rounding, see Format.encode
    """

    decoder: Decoder
    plan: Mapping[str, PlannedTensor]
    sources: Mapping[str, ModelTensor]
    method: Method
    method_name: str
    rewrites: tuple[str, ...]
    workspace: Workspace
    ranks: Ranks
    threads: int = 0
    is_summed: bool = False
    search: str = "best"
    held_out: HeldOut | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    importances: dict[str, dict[int | None, tuple[Float32, int]]] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    pending: Finished = field(default_factory=lambda: Finished({}, {}))
    """What became of the steps of a block so far."""

    def needs(self, name: str) -> Needs:
        """What the method wants to know of a matrix's input."""
        if self._format_name(name) in PLAIN:
            return Needs(squares=False)
        return wanted(self.method, self.rewrites)

    def finished(self, layer: int) -> Mapping[str, Tensor] | None:
        """What an earlier run has made of the block."""
        found = self.workspace.load(layer) if self.ranks.is_first else None
        if not self.ranks.tell(found is not None):
            return None
        found = self.ranks.tell(found)
        assert found is not None
        self._remember(found)
        return self._decoded(found.tensors)

    def visit(self, layer: int, weights: Mapping[str, Tensor], inputs: list[Input]) -> Mapping[str, Tensor]:
        """Quantize the matrices that take these inputs."""
        owners = self._owners(inputs)
        made: dict[str, dict[int | None, tuple[Bytes, Outcome]]] = {}
        for one in [] if self.is_summed else inputs:
            self.ranks.reduce(one.sums, {owners[name, one.expert] for name in one.names})
        check_finite(layer, inputs)
        changed = dict(weights)
        touched = self._rewritten(changed, inputs, owners) if weights else []
        weights = changed
        for one in inputs:
            self._note_importance(one)
            with self.clock.stage("method"):
                mine = [name for name in one.names if owners[name, one.expert] == self.ranks.rank]
                results = self._quantized(weights, one, mine) if mine else {}
            one.sums.product = one.sums.lag = None  # the largest things in memory, used up
            for name in one.names:
                found = self._shared(name, results.get(name), owners[name, one.expert])
                made.setdefault(name, {})[one.expert] = found
        finished = self._assembled(made, {name: weights[name] for name in touched if name not in made})
        before = self.pending
        self.pending = Finished({**before.tensors, **finished.tensors}, {**before.notes, **finished.notes})
        return self._decoded(finished.tensors) if weights else {}

    def finish(self, layer: int) -> None:
        """Keep what became of the block."""
        if self.ranks.is_first:
            self.workspace.save(layer, self.pending)
        self._remember(self.pending)
        self.pending = Finished({}, {})
        give_back()

    def _owners(self, inputs: list[Input]) -> dict[tuple[str, int | None], int]:
        """Which rank works on what."""
        pieces = [(name, one) for one in inputs for name in one.names]
        owners = deal([self._cost(name, one) for name, one in pieces], self.ranks.size)
        return {(name, one.expert): owner for (name, one), owner in zip(pieces, owners, strict=True)}

    def _rewritten(
        self, weights: dict[str, Tensor], inputs: list[Input], owners: Mapping[tuple[str, int | None], int]
    ) -> list[str]:
        """Scale the block's weights in place, the same on every rank; return the names of what was divided."""
        touched: list[str] = []
        for one in inputs:
            owner = owners[one.names[0], one.expert]
            self._note_importance(one)
            fmt = get(self._format_name(one.names[0]))
            for rewrite in self.rewrites:
                scales: Tensor | None = None
                if owner == self.ranks.rank and fmt.name not in PLAIN:
                    with self.clock.stage("method"):
                        scales = apply(rewrite, one, weights, fmt, one.sums.hessian(), threads=self.threads)
                if not self.ranks.tell(scales is not None, owner):
                    continue
                scales = torch.ones_like(weights[one.names[0]][0]) if scales is None else scales
                self.ranks.broadcast(scales, owner)
                producer = producer_of(one, weights)
                assert producer is not None
                touched += rescale(one, weights, scales, get(self._format_name(producer.names[0])))
        return touched

    def passed(self, block: Block, became: Mapping[str, Tensor]) -> None:
        """Take the held-out sequences through the block."""
        if self.held_out is None:
            return
        with self.clock.stage("proof"):
            rounded = {}
            for name in became:
                values = torch.from_numpy(self.rounded(name, 0, self.sources[name].rows))
                rounded[name] = values.reshape(block.weights[name].shape).to(self.ranks.device)
            self.held_out.through(block, became, rounded)

    def rounded(self, name: str, start: int, stop: int) -> Float32:
        """Rows of a matrix after plain, importance-weighted rounding: what the method has to beat."""
        source, kind = self.sources[name], get(self._format_name(name))
        weight, per_expert = source.read(start, stop), source.shape[-2] if len(source.shape) > 2 else None
        found = self.importances.get(name, {})
        if per_expert is None:
            data = kind.encode(
                weight, importance=_importance(found.get(None)), search=self.search, threads=self.threads
            )
        else:
            pieces = [
                kind.encode(
                    weight[at : at + per_expert],
                    importance=_importance(found.get((start + at) // per_expert)),
                    search=self.search,
                    threads=self.threads,
                )
                for at in range(0, len(weight), per_expert)
            ]
            data = np.concatenate(pieces)
        return kind.decode(data, source.columns, threads=self.threads)

    def _format_name(self, name: str) -> str:
        return self.plan[name].format

    def _cost(self, name: str, one: Input) -> float:
        columns = float(len(one.sums.squares))
        return columns**3 / 3 + self.sources[name].rows * columns**2

    def _note_importance(self, one: Input) -> None:
        """Remember what the inputs were before any rewrite."""
        for name in one.names:
            if one.expert in self.importances.get(name, {}):
                continue
            squares = one.sums.squares.float().cpu().numpy()
            self.importances.setdefault(name, {})[one.expert] = (squares, one.sums.tokens)

    def _quantized(
        self, weights: Mapping[str, Tensor], one: Input, names: list[str]
    ) -> dict[str, tuple[Bytes, Outcome]]:
        found = {}
        hessian = one.sums.hessian()
        given = {"hessian": hessian, "cross": one.sums.mean_cross(hessian), "residual": one.sums.mean_residual()}
        for name in names:
            try:
                found[name] = self._best_of(name, weights, one, given)
            except TersorError as error:
                where = name if one.expert is None else f"{name}, expert {one.expert}"
                raise type(error)(f"{where} as {self._format_name(name)} by {self.method_name}: {error}") from error
        return found

    def _best_of(self, name: str, weights: Mapping[str, Tensor], one: Input, given: Given) -> tuple[Bytes, Outcome]:
        """The method's rows, or those of plain rounding where these are better or all there is."""
        rows = self.sources[name].shape[-2]
        step = max(1, ROWS_AT_ONCE // self.sources[name].columns) if not weights else rows
        pieces: list[Bytes] = []
        error = plain = power = 0.0  # summed over rows
        reasons: list[str] = []
        for start in range(0, rows, step):
            weight = self._weight(name, weights, one.expert, start, min(start + step, rows))
            piece = self._piece(name, weight, one, given)
            pieces.append(piece.data)
            error, plain, power = error + (piece.error or 0), plain + (piece.plain or 0), power + piece.power
            reasons += [piece.reason] * (piece.reason not in reasons and bool(piece.reason))
        measured = power > 0
        outcome = Outcome(
            name,
            "rtn" if reasons or self.method_name == "rtn" or self._format_name(name) in PLAIN else self.method_name,
            (error / power) ** 0.5 if measured else None,
            (plain / power) ** 0.5 if measured else None,
            one.sums.tokens,
            "; ".join(reasons),
            one.expert,
        )
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0], outcome

    def _weight(self, name: str, weights: Mapping[str, Tensor], expert: int | None, start: int, stop: int) -> Tensor:
        if not weights:  # the output matrix is too large to be held whole
            return torch.from_numpy(self.sources[name].read(start, stop)).to(self.ranks.device)
        return weights[name] if expert is None else weights[name][expert]

    def _piece(self, name: str, weight: Tensor, one: Input, given: Given) -> _Piece:
        kind, hessian = get(self._format_name(name)), given["hessian"]
        importance = _importance((one.sums.squares.float().cpu().numpy(), one.sums.tokens))
        plain = kind.encode(weight.cpu().numpy(), importance=importance, search=self.search, threads=self.threads)
        if hessian is None:
            asked = "hessian" in self.method.needs and kind.name not in PLAIN
            return _Piece(plain, None, None, 0.0, "no calibration token passed through it" if asked else "")
        power = float(((weight @ hessian) * weight).sum(dtype=torch.float64))
        base, base_goal = self._errors(weight, plain, kind, given)
        if kind.name in PLAIN or self.method_name == "rtn":
            return _Piece(plain, base, base, power, "")
        if given["cross"] is None and "cross" in self.method.needs:
            given = {**given, "cross": hessian}  # an expert's inputs cannot be paired: nothing to correct
        taken = {what: given[what] for what in (*self.method.needs, *self.method.uses) if given.get(what) is not None}
        result = self.method.function(weight, kind, threads=self.threads, **taken)
        error, goal = self._errors(weight, result.data, kind, given)
        if result.fallback:
            return _Piece(result.data, error, base, power, result.fallback)
        if goal > base_goal:
            return _Piece(plain, base, base, power, "plain rounding comes closer to the full-precision outputs")
        return _Piece(result.data, error, base, power, "")

    def _errors(self, weight: Tensor, data: Bytes, kind: Format, given: Given) -> tuple[float, float]:
        """Squared error of the outputs on the inputs that the rows will see, and what they are judged by.

        The second is the squared distance to the full-precision model's outputs, less a constant; the same as the first
        where nothing is known of these.
        """
        hessian, cross, residual = given["hessian"], given["cross"], given["residual"]
        assert hessian is not None
        decoded = kind.decode(data, int(weight.shape[1]), threads=self.threads)
        values = torch.from_numpy(decoded).to(weight.device)
        error = output_error(weight, values, hessian)
        goal = error if cross is None else output_error(weight, values, hessian, cross=cross)
        if residual is not None:  # the outputs also have to make good what the stream lacks
            goal -= 2 * float((residual * values).sum(dtype=torch.float64))
        return error, goal

    def _shared(self, name: str, result: tuple[Bytes, Outcome] | None, owner: int) -> tuple[Bytes, Outcome]:
        """The owner's result, on every rank."""
        if self.ranks.size == 1:
            assert result is not None
            return result
        source = self.sources[name]
        shape = (source.shape[-2], get(self._format_name(name)).row_bytes(source.columns))
        data = torch.zeros(shape, dtype=torch.uint8) if result is None else torch.from_numpy(result[0])
        data = data.to(self.ranks.device)
        self.ranks.broadcast(data, owner)
        outcome: Outcome = self.ranks.tell(None if result is None else result[1], owner)
        return data.cpu().numpy(), outcome

    def _assembled(
        self, made: Mapping[str, Mapping[int | None, tuple[Bytes, Outcome]]], divided: Mapping[str, Tensor]
    ) -> Finished:
        """Experts stacked again, in order, and the norms and biases that a rewrite has divided."""
        tensors, notes = {}, {}
        for name, parts in made.items():
            order = sorted(parts, key=lambda expert: -1 if expert is None else expert)
            data = np.concatenate([parts[expert][0] for expert in order])
            reasons = {parts[expert][1].reason for expert in order} - {""}
            tensors[name] = QuantizedTensor(
                get(self._format_name(name)), self.sources[name].shape, data, "; ".join(sorted(reasons)) or None
            )
            squares = [self.importances[name][expert] for expert in order]
            notes[name] = {
                "outcomes": [parts[expert][1].to_object() for expert in order],
                "squares": [values for values, _ in squares],
                "tokens": [count for _, count in squares],
            }
        for name, values in divided.items():
            rows = values.reshape(-1, values.shape[-1]).cpu().numpy()
            tensors[name] = QuantizedTensor(get("f32"), tuple(values.shape), get("f32").encode(rows))
        return Finished(tensors, notes)

    def _remember(self, finished: Finished) -> None:
        for name, note in finished.notes.items():
            outcomes = [Outcome(**fields) for fields in note["outcomes"]]
            self.outcomes += outcomes
            for outcome, squares, tokens in zip(outcomes, note["squares"], note["tokens"], strict=True):
                self.importances.setdefault(name, {})[outcome.expert] = (np.array(squares, np.float32), int(tokens))

    def _decoded(self, tensors: Mapping[str, QuantizedTensor]) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(tensor.dequantize(self.threads)).to(self.ranks.device)
            for name, tensor in tensors.items()
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Rows of a matrix: their bytes, squared output errors of these and of plain rounding, power of the output."""

    data: Bytes
    error: float | None
    plain: float | None
    power: float
    reason: str


def _importance(found: tuple[Float32, int] | None) -> Float32 | None:
    """The importance of each column; None where no token was seen."""
    if found is None or not found[1] or not found[0].any():
        return None
    return found[0] / np.float32(found[1])

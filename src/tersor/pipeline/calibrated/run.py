"""Calibrate and quantize: the rows of every matrix that has an input, and what they cost and gained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor import __version__
from tersor.calibrate.encoders import open_encoder
from tersor.calibrate.ranks import Ranks
from tersor.calibrate.sequences import Sequences, pack
from tersor.calibrate.statistics import Statistics, run_statistics
from tersor.calibrate.stream import PAIRED, Needs, Setting, run_blocks
from tersor.calibrate.text import BUILT_IN, MAX_BYTES, read_corpus
from tersor.calibrate.workspace import Finished, Workspace, workspace_path
from tersor.core.arrays import Bytes
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.format import Format
from tersor.core.plan import Plan
from tersor.decoder import Decoder
from tersor.formats import get
from tersor.kernels import codec
from tersor.kernels.lazy import LazyModule
from tersor.methods import METHODS, Method
from tersor.models.model import Model
from tersor.pipeline.calibrated.held_out import Gain, HeldOut, Rows
from tersor.pipeline.calibrated.memory import MemoryPlan, plan_memory
from tersor.pipeline.calibrated.outcome import Outcome
from tersor.pipeline.calibrated.rewrites import parse_method
from tersor.pipeline.calibrated.visitor import PLAIN, BlockQuantizer, wanted

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Calibration", "Prepared", "Run", "by_block", "divided", "exact", "prepare", "read_sequences"]

LENGTH = 512
BYTES_READ = 32
"""Of text for each token that is asked for, where that is more than is usually read: documents are chosen from it."""
HELD_OUT = (4, 16)
"""Fewest and most sequences that are kept back for the proof; one in sixteen otherwise."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What to calibrate on.

    source     a file, a folder, a `datasets` id, or "builtin"
    sequences  how many, of `length` tokens each; None: 512, or what the model takes if that is less
    field      of the rows, where `source` has rows
    seed       shuffles the documents; 0: their own order
    chunk      sequences that go through a block at once
    spill      hidden states in a file (True), in memory (False), or as the free memory allows (None)
    shortest   tokens that a sequence may be cut down to where there is too little text; None: then it is an error
    """

    source: str | Path = BUILT_IN
    sequences: int = 128
    length: int | None = None
    field: str | None = None
    seed: int = 0
    chunk: int = 4
    spill: bool | None = None
    shortest: int | None = None


@dataclass
class Prepared:
    """The finished rows of a run, in its workspace until the artefact is written.

    text    what it was calibrated on
    memory  the plan that was made before
    gain    what it was worth on held-out sequences; None without proof
    trained where the rows lie instead, if they were trained after
    """

    visitor: BlockQuantizer
    layers: int
    text: Sequences
    memory: MemoryPlan
    gain: Gain | None = None
    trained: Workspace | None = None
    _held: tuple[int, Finished] | None = field(default=None, repr=False)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of every matrix, and of every expert."""
        return tuple(self.visitor.outcomes)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time of each stage."""
        return self.visitor.clock.seconds

    @cached_property
    def places(self) -> dict[str, int]:
        """GGUF name → the block file that holds it."""
        found = {}
        for layer in range(self.layers + 1):
            for name in self.finished(layer).tensors:
                found[name] = layer
        return found

    def rows(self, name: str, start: int, stop: int) -> Bytes:
        """Packed rows of one matrix."""
        return self.finished(self.places[name]).tensors[name].data[start:stop]

    def format_of(self, name: str) -> Format:
        """The format of the packed rows of a tensor."""
        return self.finished(self.places[name]).tensors[name].format

    def done(self) -> None:
        """Forget the unfinished work: the artefact is written."""
        self.visitor.workspace.remove()

    def finished(self, layer: int) -> Finished:
        """What became of a block, and behind the last of them of the output matrix."""
        if self._held is None or self._held[0] != layer:
            found = (self.trained or self.visitor.workspace).load(layer)
            if found is None:
                raise ShapeError(f"the rows of block {layer} were never made")
            self._held = (layer, found)
        return self._held[1]


@dataclass(frozen=True, slots=True)
class Run:
    """How a calibrated run goes about it; see `prepare`.

    statistics  saved sums to take instead of going through the blocks
    """

    statistics: Statistics | None = None
    threads: int = 0
    resume: bool | None = None
    proof: bool = True
    progress: Callable[[str, int, int], None] | None = None
    tell: Callable[[str], None] | None = None


def prepare(
    model: Model,
    plan: Plan,
    output: Path,
    *,
    text: Sequences,
    method: str,
    calibration: Calibration,
    ranks: Ranks,
    run: Run,
) -> Prepared:
    """Take the model through calibration and `method`; the result lies in the workspace beside `output`.

    A run that was killed goes on from its last finished block with `run.resume`, and ends with the same bytes.
    Raises SchemeError for an unknown method or too few sequences, MissingError where text, memory or a library is
    missing, FormatError where activations are not finite, EngineError where another rank is lost.
    """
    taken, kept_back = divided(text) if run.proof else (text, text.ids[:0])
    decoder = Decoder(model, device=ranks.device)
    rewrites, rounding = parse_method(method)
    needs = _needs(METHODS[rounding], rewrites, rounding, run.statistics)
    # A rewrite divides what an earlier step has rounded, and what is saved is saved for a whole block.
    stepwise = needs.hessian and not rewrites and run.statistics is None
    memory = plan_memory(
        *(model, decoder, needs, calibration.chunk),
        sequences=-(-len(taken.ids) // ranks.size) if run.statistics is None else 0,
        length=taken.ids.shape[1],
        spill=calibration.spill,
        stepwise=stepwise,
    )
    memory.check(run.tell if ranks.is_first else None)
    described = _description(model, plan, text, calibration.chunk, run) if ranks.is_first else {}
    visitor = BlockQuantizer(
        plan={tensor.name: tensor for tensor in plan.tensors},
        sources={tensor.name: tensor for tensor in model.tensors},
        decoder=decoder,
        method=METHODS[rounding],
        method_name=rounding,
        rewrites=rewrites,
        workspace=Workspace(workspace_path(output), described, resume=run.resume, is_owner=ranks.is_first),
        ranks=ranks,
        threads=run.threads,
        is_summed=run.statistics is not None,
        search=plan.recipe.search,
        held_out=HeldOut(decoder, kept_back) if run.proof and ranks.is_first else None,
    )
    setting = Setting(
        stepwise=stepwise,
        chunk=calibration.chunk,
        device=ranks.device,
        spill=output.parent if memory.spilled else None,
        cross=needs.cross,
        embed=_embedder(plan),
        stage=visitor.clock.stage,
        progress=by_block(run.progress, decoder.layers),
    )
    with exact():
        _go(visitor, taken, setting, run.statistics)
        return _proved(Prepared(visitor, decoder.layers, text, memory))


def _needs(method: Method, rewrites: tuple[str, ...], name: str, statistics: Statistics | None) -> Needs:
    """What the run has to gather; saved sums know nothing of earlier layers' errors."""
    needs = wanted(method, rewrites)
    if statistics is None:
        return needs
    if "cross" in method.needs:
        raise SchemeError(
            f"{name} corrects what earlier layers did wrong, and saved statistics are of the model in full precision: "
            "give --calibration, or another method"
        )
    return replace(needs, cross=False)


def _go(visitor: BlockQuantizer, text: Sequences, setting: Setting, statistics: Statistics | None) -> None:
    """Take the visitor through the model, on this rank's part of the text or on saved sums."""
    if visitor.held_out is not None:
        visitor.held_out.begin(setting.embed)
    if statistics is None:
        run_blocks(visitor.decoder, visitor.ranks.share(text, setting.chunk), visitor, setting)
    else:
        run_statistics(visitor.decoder, statistics, visitor, setting)


def _proved(prepared: Prepared) -> Prepared:
    """Prove what the run was worth."""
    held_out, clock = prepared.visitor.held_out, prepared.visitor.clock
    if held_out is not None:
        with clock.stage("proof"):
            prepared.gain = held_out.gain(*_heads(prepared))
    return prepared


def read_sequences(model: Model, calibration: Calibration) -> Sequences:
    """Read the text and cut it into token sequences for `model`; what is given shapes every later byte."""
    entry = model.metadata.get(f"{model.architecture}.context_length")
    context = entry.value if entry is not None and isinstance(entry.value, int) else LENGTH
    length = calibration.length or min(LENGTH, context)
    if length > context:
        raise SchemeError(
            f"{model.name} takes {context} tokens at most, calibration sequences of {length} are asked for"
        )
    most = max(MAX_BYTES, BYTES_READ * calibration.sequences * length)
    corpus = read_corpus(calibration.source, field=calibration.field, max_bytes=most)
    with open_encoder(model) as encoder:
        return pack(
            corpus,
            encoder,
            count=calibration.sequences,
            length=length,
            seed=calibration.seed,
            shortest=calibration.shortest,
        )


def divided(sequences: Sequences) -> tuple[Sequences, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Keep every n-th sequence back."""
    count = len(sequences.ids)
    back = min(max(count // 16, HELD_OUT[0]), HELD_OUT[1], count // 2)
    places = np.linspace(0, count - 1, 2 * back + 1).round().astype(np.int64)[1::2]
    rest = np.setdiff1d(np.arange(count), places)
    return replace(sequences, ids=sequences.ids[rest]), sequences.ids[places]


def _description(model: Model, plan: Plan, sequences: Sequences, chunk: int, run: Run) -> dict[str, object]:
    """Everything that shapes the bytes."""
    statistics = {} if run.statistics is None else {"statistics": run.statistics.about["files"]}
    return {
        "model": model.hashes(),
        "plan": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "method": plan.recipe.method,  # in the plan, too: here it is told by name where it differs
        "text": sequences.sha256,
        "tokens": hashlib.sha256(sequences.ids.tobytes()).hexdigest(),
        "chunk": chunk,
        "proof": run.proof,  # what is kept back is not calibrated on
        "paired": PAIRED,
        "versions": {"tersor": __version__, "torch": version("torch"), "kernels": codec.backend().partition(":")[0]},
        **statistics,
    }


def _embedder(plan: Plan) -> Callable[[Tensor], Tensor] | None:
    """What rounding the table does to embeddings, None where it does nothing."""
    name = next(tensor.format for tensor in plan.tensors if tensor.name == "token_embd.weight")
    if name in PLAIN:
        return None
    kind = get(name)

    def embed(hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1]).cpu().numpy()
        made = torch.from_numpy(kind.decode(kind.encode(rows), rows.shape[1]))
        return made.reshape(hidden.shape).to(hidden.device)

    return embed


def _heads(prepared: Prepared) -> tuple[Rows, Rows]:
    """What decodes rows of the output matrix: as they became, and plainly rounded."""
    visitor = prepared.visitor
    name = visitor.decoder.matrix
    columns, kind = visitor.sources[name].columns, get(visitor.plan[name].format)

    def became(start: int, stop: int) -> Tensor:
        return torch.from_numpy(kind.decode(prepared.rows(name, start, stop), columns)).to(visitor.ranks.device)

    def plain(start: int, stop: int) -> Tensor:
        return torch.from_numpy(visitor.rounded(name, start, stop)).to(visitor.ranks.device)

    return became, plain


def by_block(progress: Callable[[str, int, int], None] | None, layers: int) -> Callable[[int, float], None]:
    """Return what takes (layer, share of it that is done), and tells `progress`."""

    def tell(layer: int, share: float) -> None:
        if progress is not None:
            where = f"block {layer + 1} of {layers}" if layer < layers else "output matrix"
            progress(where, round(1000 * (layer + share)), 1000 * (layers + 1))

    return tell


@contextmanager
def exact() -> Iterator[None]:
    """No reduced precision in matrix products while sums are made, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)

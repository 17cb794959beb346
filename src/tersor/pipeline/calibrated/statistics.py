"""Gather what every matrix of a model sees, once, and keep it: `tersor calibrate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.calibrate.ranks import Ranks, open_ranks
from tersor.calibrate.sequences import Sequences
from tersor.calibrate.statistics import Statistics, block_file, foreign_file, save_index, save_sums, save_tokens
from tersor.calibrate.stream import Input, Needs, Setting, run_blocks
from tersor.calibrate.workspace import Workspace, workspace_path
from tersor.containers.imatrix import Importances
from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError
from tersor.decoder import Block, Decoder
from tersor.files.atomic import check_folder, replace_folder
from tersor.models.model import Model
from tersor.pipeline.calibrated.memory import plan_memory
from tersor.pipeline.calibrated.run import Calibration, by_block, divided, exact, read_sequences
from tersor.pipeline.calibrated.visitor import check_finite
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.stages import Clock
from tersor.targets.memory import give_back

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Gathered", "calibrate", "importances_of", "open_statistics"]

NEEDS = Needs(hessian=True, peaks=True)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was saved.

    inputs  distinct ones; matrices that see the same share one
    nbytes  on disk
    """

    folder: Path
    corpus: str
    sequences: int
    tokens: int
    inputs: int
    nbytes: int
    seconds: float
    stages: Mapping[str, float]
    planned: str

    def to_object(self) -> dict[str, Any]:
        """For --json."""
        named = {key: getattr(self, key) for key in ("corpus", "sequences", "tokens", "inputs", "nbytes", "planned")}
        stages = {name: round(value, 3) for name, value in self.stages.items()}
        return {"folder": self.folder.name, **named, "seconds": round(self.seconds, 3), "stages": stages}


def calibrate(
    model: Model,
    output: Path,
    calibration: Calibration | None = None,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Gathered | None:
    """Run `model` in full precision over the calibration text, and save the sums as the folder `output`.

    Returns what was saved, None in every rank but the first. A run that was killed goes on with `resume`. Raises
    FormatError where `output` is something else or activations are not finite, and what `prepare` of a calibrated run
    raises for texts and memory.
    """
    began = perf_counter()
    calibration = calibration or Calibration()
    _check_output(output)
    with open_ranks(device) as ranks, exact():
        text = read_sequences(model, calibration)
        taken, _ = divided(text)
        decoder = Decoder(model, device=ranks.device)
        memory = plan_memory(
            *(model, decoder, NEEDS, calibration.chunk),
            sequences=-(-len(taken.ids) // ranks.size),
            length=taken.ids.shape[1],
            spill=calibration.spill,
            stepwise=False,
        )
        memory.check(tell if ranks.is_first else None)
        about = _about(model, decoder, text, calibration) if ranks.is_first else {}
        work = Workspace(workspace_path(output), about, resume=resume or None, is_owner=ranks.is_first)
        gatherer = _Gatherer(work.folder, ranks)
        setting = Setting(
            stepwise=False, chunk=calibration.chunk, device=ranks.device, stage=gatherer.clock.stage,
            spill=output.parent if memory.spilled else None, progress=by_block(progress, decoder.layers),
        )  # fmt: skip
        run_blocks(decoder, ranks.share(taken, calibration.chunk), gatherer, setting)
        if not ranks.is_first:
            return None
        _finish(work.folder, output, text, about)
    nbytes = sum(path.stat().st_size for path in output.iterdir())
    saved = Statistics.open(output)
    inputs = sum(saved.inputs(layer) for layer in range(decoder.layers + 1))
    seconds, stages = perf_counter() - began, gatherer.clock.seconds
    return Gathered(
        output, text.corpus, len(text.ids), taken.tokens, inputs, nbytes, seconds, stages, memory.described()
    )


def open_statistics(folder: Path, model: Model) -> Statistics:
    """Return saved statistics; SchemeError where they are another model's."""
    found = Statistics.open(folder)
    if found.about["model"] != model.hashes():
        odd = sorted(set(found.about["model"].items()) ^ set(model.hashes().items()))[0][0]
        raise SchemeError(f"{folder}: gathered from another model ({odd} differs); gather them again from {model.name}")
    return found


def importances_of(statistics: Statistics) -> Importances:
    """Return what the sums say for llama.cpp: an importance matrix."""
    sums: dict[str, list[Float32]] = {}
    counts: dict[str, list[float]] = {}
    for layer in range(statistics.about["layers"] + 1):
        for one in sorted(statistics.load(layer), key=lambda one: -1 if one.expert is None else one.expert):
            for name in one.names:
                sums.setdefault(name, []).append(one.sums.squares.float().numpy())
                counts.setdefault(name, []).append(one.sums.tokens)
    count, length = statistics.sequences.ids.shape
    arrays = {name: np.stack(values) for name, values in sums.items()}
    seen = {name: np.array(values, np.float32) for name, values in counts.items()}
    return Importances(arrays, seen, (statistics.about["corpus"],), count, length)


@dataclass
class _Gatherer:
    """The visitor that changes nothing and saves what it is shown."""

    folder: Path
    ranks: Ranks
    clock: Clock = field(default_factory=Clock)

    def needs(self, name: str) -> Needs:
        """Everything that a method could ask for, of every matrix."""
        del name
        return NEEDS

    def finished(self, layer: int) -> Mapping[str, Tensor] | None:
        """Nothing has changed in a block whose sums are there."""
        is_there = self.ranks.tell(self.ranks.is_first and block_file(self.folder, layer).is_file())
        return {} if is_there else None

    def visit(self, layer: int, weights: Mapping[str, Tensor], inputs: list[Input]) -> Mapping[str, Tensor]:
        """Save the sums of a block."""
        del weights
        for one in inputs:
            self.ranks.reduce(one.sums, {0})
        check_finite(layer, inputs)
        if self.ranks.is_first:
            with self.clock.stage("saving"):
                save_sums(block_file(self.folder, layer), inputs)
        return {}

    def finish(self, layer: int) -> None:
        """The sums are free again."""
        del layer
        give_back()

    def passed(self, block: Block, became: Mapping[str, Tensor]) -> None:
        """Nothing became of it."""
        del block, became


def _about(model: Model, decoder: Decoder, text: Sequences, calibration: Calibration) -> dict[str, Any]:
    """What the sums were made from, plain JSON values."""
    return {
        "model": model.hashes(),
        "name": model.name,
        "layers": decoder.layers,
        "corpus": text.corpus,
        "text": text.sha256,
        "notes": list(text.notes),
        "sequences": list(text.ids.shape),
        "chunk": calibration.chunk,
        "seed": calibration.seed,
        "versions": provenance.versions(),
    }


def _check_output(output: Path) -> None:
    """Refuse before the work what would be refused after it."""
    check_folder(output)
    foreign = foreign_file(output) if output.is_dir() else None
    if foreign is not None:
        raise FormatError(f"{output / foreign}: belongs to no statistics, so the folder is not replaced; name another")


def _finish(work: Path, output: Path, text: Sequences, about: Mapping[str, Any]) -> None:
    """Make the work the output: the index comes last, and the name after it."""
    save_tokens(work, text)
    save_index(work, about)
    replace_folder(work, output)
    (output / "run.json").unlink()

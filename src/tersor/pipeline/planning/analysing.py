"""Measure how sensitive every tensor of a model is to every format: `tersor analyse`.

Three passes over the model, each linear in its parameters: the calibration text goes through the blocks while each
matrix is rounded to all its candidates; other sequences go forward and, as random gradients, back; and a few mixes are
put together and measured, which says how far the estimate is from what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.analyse.allocation import Frontier
from tersor.analyse.analysis import AnalysedTensor, Analysis, Candidate, Measured
from tersor.analyse.projections import Projections, project
from tersor.analyse.stitched import measure_mixes
from tersor.analyse.survey import Surveyed, Surveyor
from tersor.calibrate.sequences import Sequences
from tersor.calibrate.statistics import Statistics, run_statistics
from tersor.calibrate.stream import Needs, Setting, run_blocks
from tersor.calibrate.workspace import Workspace
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.decoder import Decoder
from tersor.files.atomic import atomic_writer, check_folder
from tersor.files.safetensors import SafetensorsFile
from tersor.files.safetensors_writer import SafetensorsWriter, StoredTensor
from tersor.formats import get
from tersor.methods import METHODS
from tersor.models.model import Model
from tersor.pipeline.calibrated.memory import plan_memory
from tersor.pipeline.calibrated.run import Calibration, by_block, divided, exact, read_sequences
from tersor.pipeline.calibrated.statistics import open_statistics
from tersor.pipeline.planning.layout import candidate_formats, fused_groups, kept_bytes, spread
from tersor.pipeline.planning.plan_file import GGUF
from tersor.pipeline.planning.room import folder_of_states, outside_bytes
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.stages import Clock

__all__ = ["ANALYSIS", "Studied", "Study", "analyse", "open_study"]

ANALYSIS = "analysis.json"
PROJECTIONS = "projections.safetensors"
TOKENS = "tokens.safetensors"
CANDIDATES = "candidates"
PIECES = (128, 64, 32)
"""Tokens of a draw: from the same text, more and shorter draws say more."""
ENOUGH_DRAWS = 64
"""Estimates are good to √(2/draws), 18 %, each, and their sum over tensors to a few percent."""
MEASURED_TOKENS = 8192
"""On which mixes are measured, at most."""
SHARES = (0.02, 0.12, 0.3, 0.55, 0.9)
"""Where between the smallest and the largest mix the prediction is held against a measurement."""
SINGLES = 6
"""Tensors whose estimate is checked by rounding them alone."""


@dataclass(frozen=True, slots=True)
class Study:
    """What to analyse.

    formats      candidates of every tensor, where its columns allow them
    method       what will round the model: a key of METHODS; its errors are what is measured
    calibration  the text; one sequence for every `apart` of it is added and kept for the estimates
    statistics   saved sums of `tersor calibrate` instead of a text
    container    what shall hold the model
    seed         of the random gradients
    """

    formats: Sequence[str]
    method: str = "best"
    calibration: Calibration = field(default_factory=Calibration)
    statistics: Path | None = None
    container: str = GGUF
    seed: int = 0
    threads: int = 0

    @property
    def apart(self) -> int:
        """Calibration sequences for each that is kept for the estimates."""
        return 4


@dataclass(frozen=True, eq=False)
class Studied:
    """A finished analysis with what it was made from.

    calibration  int64 [sequences, tokens] that the candidates know
    probes       int64 [draws, tokens] that estimates were made on, pieces of sequences that were kept back
    """

    folder: Path
    analysis: Analysis
    surveyed: Surveyed
    calibration: npt.NDArray[np.int64]
    probes: npt.NDArray[np.int64]

    @property
    def measured_on(self) -> npt.NDArray[np.int64]:
        """What mixes are measured on: as many of the probes as are enough, as long as the calibration's sequences."""
        return _whole(self.probes, self.calibration.shape[1])

    def with_analysis(self, analysis: Analysis) -> Studied:
        """Return the same with another analysis, which is saved."""
        _save(self.folder, analysis)
        return replace(self, analysis=analysis)


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """What calibrates, and what estimates are made on: int64 [draws, tokens]."""

    calibration: Sequences
    probes: npt.NDArray[np.int64]
    described: str
    statistics: Statistics | None


def analyse(
    model: Model,
    folder: Path,
    study: Study,
    *,
    resume: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Studied:
    """Return the analysis of `model`, and save it with its candidates as `folder`.

    What lies there already is taken where it is of the same model, text, method, formats and versions, and with
    `resume` gone on with where it is unfinished. Raises SchemeError where it is of others: it may have taken hours; and
    for methods that need a run through the model. Raises what calibration raises for texts and memory.
    """
    if study.method not in METHODS:
        raise SchemeError(
            f"a plan is made for one of {', '.join(METHODS)}, not for {study.method!r}: rewrites before a method "
            "change the weights whose sensitivity is measured"
        )
    check_folder(folder)
    texts = _texts(model, study)
    formats = candidate_formats(model, study.formats, study.container)
    about = _about(model, study, texts)
    workspace = _workspace(folder, about, resume=resume)
    if (folder / ANALYSIS).is_file():
        workspace.close()
        return open_study(model, folder)
    run = _Run(model, Decoder(model), study, texts, formats, workspace, folder, progress, tell)
    with exact():
        found = run.analysis()
    ids = {"calibration": texts.calibration.ids, "probes": texts.probes}
    _write(folder / TOKENS, {name: np.ascontiguousarray(values, np.int64) for name, values in ids.items()}, "I64")
    _save(folder, found)
    workspace.close()
    return open_study(model, folder)


def open_study(model: Model, folder: Path) -> Studied:
    """Return a saved analysis of `model`; SchemeError where it is another model's, MissingError where there is none."""
    if not (folder / ANALYSIS).is_file():
        raise MissingError(f"{folder}: holds no finished analysis; make one with tersor analyse")
    found = Analysis.load(folder / ANALYSIS)
    if found.sources != model.hashes():
        raise SchemeError(f"{folder}: the analysis of another model; analyse {model.name} anew")
    formats = {tensor.name: tuple(one.format for one in tensor.candidates) for tensor in found.tensors}
    sources = {tensor.name: tensor for tensor in model.tensors}
    odd = sorted(set(formats) - set(sources))
    if odd:
        raise FormatError(f"{folder / ANALYSIS}: {odd[0]!r} is no tensor of {model.name}")
    workspace = Workspace(folder / CANDIDATES, {}, resume=True, is_owner=False)  # to be read, not to be gone on with
    surveyed = Surveyed(workspace, formats, sources, Decoder(model).layers)
    with SafetensorsFile(folder / TOKENS) as file:
        wrong = [name for name in ("calibration", "probes") if name not in file.tensors]
        if wrong or any(len(tensor.shape) != 2 or tensor.dtype != "I64" for tensor in file.tensors.values()):
            raise FormatError(f"{folder / TOKENS}: holds no token ids; analyse {model.name} anew")
        return Studied(folder, found, surveyed, file.read("calibration"), file.read("probes"))


def _save(folder: Path, analysis: Analysis) -> None:
    with atomic_writer(folder / ANALYSIS) as file:
        file.write(analysis.to_json().encode())


def _write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], dtype: str) -> None:
    with atomic_writer(path) as output:
        writer = SafetensorsWriter(output, [StoredTensor(name, dtype, a.shape) for name, a in arrays.items()], {})
        for name, values in arrays.items():
            writer.write(name, values)
        writer.finish()


def _whole(probes: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Put pieces together again, for a divergence depends on how much text goes before a token."""
    pieces = length // probes.shape[1]
    if pieces > 1 and len(probes) >= pieces:
        probes = probes[: len(probes) // pieces * pieces].reshape(-1, pieces * probes.shape[1])
    return probes[: max(1, MEASURED_TOKENS // probes.shape[1])]


def _workspace(folder: Path, about: Mapping[str, Any], *, resume: bool) -> Workspace:
    """Open the candidates, on which all else rests; SchemeError where they are of something else."""
    folder.mkdir(exist_ok=True)
    candidates = folder / CANDIDATES
    differing = Workspace.differing(candidates, about) if resume else None
    if differing is not None and any(candidates.glob("*.bin")):
        raise SchemeError(
            f"{folder}: holds an analysis that was made with another {differing}; name another folder, or remove this "
            "one to make it anew"
        )
    if differing is not None or not resume or not (candidates / "run.json").is_file():
        for name in (ANALYSIS, PROJECTIONS, TOKENS):
            (folder / name).unlink(missing_ok=True)
    return Workspace(candidates, about, resume=resume and differing is None)


def _texts(model: Model, study: Study) -> _Texts:
    """Read the text and keep every so many-th sequence for the estimates."""
    if study.statistics is not None:
        statistics = open_statistics(study.statistics, model)
        taken, kept = divided(statistics.sequences)
        said = f"{taken.corpus}, saved statistics"
    else:
        statistics = None
        count = study.calibration.sequences
        wanted = count + max(1, count // study.apart)
        whole = read_sequences(model, replace(study.calibration, sequences=wanted))
        places = np.arange(len(whole.ids)) % (study.apart + 1) == study.apart // 2
        taken, kept = replace(whole, ids=whole.ids[~places]), whole.ids[places]
        said = f"{whole.corpus}, seed {study.calibration.seed}" if study.calibration.seed else whole.corpus
    if not len(kept):
        raise SchemeError(
            f"estimates are made on sequences that are kept back, and {taken.corpus} gives too few for that: at least "
            "2 are needed (--calibration-sequences)"
        )
    pieces = _pieces(kept)
    sequences, tokens = taken.ids.shape
    return _Texts(taken, pieces, f"{said}: {sequences} sequences of {tokens} tokens, sha256 {taken.sha256}", statistics)


def _pieces(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cut sequences into the longest pieces that are enough draws, or into the shortest there are."""
    held = [length for length in PIECES if length <= ids.shape[1]]
    for length in held:
        pieces = ids[:, : ids.shape[1] // length * length].reshape(-1, length)
        if len(pieces) >= ENOUGH_DRAWS or length == held[-1]:
            return pieces
    return ids


def _about(model: Model, study: Study, texts: _Texts) -> dict[str, Any]:
    """Everything that shapes an analysis, plain JSON values."""
    return {
        "model": dict(model.hashes()),
        "formats": list(study.formats),
        "method": study.method,
        "container": study.container,
        "text": texts.described,
        "chunk": study.calibration.chunk,
        "seed": study.seed,
        "versions": dict(provenance.versions()),
    }


@dataclass
class _Run:
    model: Model
    decoder: Decoder
    study: Study
    texts: _Texts
    formats: Mapping[str, tuple[str, ...]]
    workspace: Workspace
    folder: Path
    progress: Callable[[str, int, int], None] | None
    tell: Callable[[str], None] | None
    clock: Clock = field(default_factory=Clock)

    def analysis(self) -> Analysis:
        most = max(map(len, self.formats.values()), default=1)
        spill = folder_of_states(self.decoder, self.texts.probes.shape, most, self.study.calibration.spill, self.folder)
        sources = {tensor.name: tensor for tensor in self.model.tensors}
        self._survey()
        surveyed = Surveyed(self.workspace, self.formats, sources, self.decoder.layers)
        projections = self._projections(surveyed, spill)
        tensors = tuple(self._tensor(name, surveyed, projections[name]) for name in self.formats)
        found = Analysis(
            model=self.model.name,
            architecture=self.model.architecture,
            sources=dict(self.model.hashes()),
            method=self.study.method,
            calibration=self.texts.described,
            draws=len(self.texts.probes),
            tokens=int(self.texts.probes.size),
            kept_bytes=kept_bytes(self.model, self.formats, self.study.container),
            container=self.study.container,
            weights=sum(tensor.rows * tensor.columns for tensor in self.model.tensors),
            tensors=tensors,
        )
        with self.clock.stage("measuring"):
            measured, together = self._measured(found, surveyed, projections)
        seconds = {name: round(value, 3) for name, value in self.clock.seconds.items()}
        return replace(found, measured=measured, together=together, seconds=seconds)

    def _survey(self) -> None:
        study, decoder = self.study, self.decoder
        needs = Needs(hessian=True, peaks=True)
        memory = plan_memory(
            *(self.model, decoder, needs, study.calibration.chunk),
            sequences=0 if self.texts.statistics else len(self.texts.calibration.ids),
            length=self.texts.calibration.ids.shape[1],
            spill=study.calibration.spill,
            stepwise=False,
        )
        memory = replace(memory, outside=outside_bytes(self.model, self.formats))
        memory.check(self.tell)
        surveyor = Surveyor(
            self.formats,
            {tensor.name: tensor for tensor in self.model.tensors},
            (study.method, METHODS[study.method]),
            decoder.layers,
            self.workspace,
            threads=study.threads,
            stage=self.clock.stage,
        )
        spill = self.folder if memory.spilled else None
        progress = by_block(self.progress, decoder.layers)
        setting = Setting(
            stepwise=False, chunk=study.calibration.chunk, spill=spill, stage=self.clock.stage, progress=progress
        )
        if self.texts.statistics is None:
            run_blocks(decoder, self.texts.calibration, surveyor, setting)
        else:
            run_statistics(decoder, self.texts.statistics, surveyor, setting)

    def _projections(self, surveyed: Surveyed, spill: Path | None) -> Projections:
        path = self.folder / PROJECTIONS
        if path.is_file():
            with SafetensorsFile(path) as file:
                return {name: file.read(name) for name in self.formats}
        layers = self.decoder.layers

        def tell(step: int, share: float) -> None:
            if self.progress is not None:
                self.progress("gradients", round(1000 * (step + share)), 1000 * (2 * layers + 1))

        with self.clock.stage("gradients"):
            probes, seed = self.texts.probes, self.study.seed
            found = project(self.decoder, probes, surveyed, seed=seed, spill=spill, progress=tell)
        _write(path, {name: np.ascontiguousarray(values) for name, values in found.items()}, "F32")
        return found

    def _tensor(self, name: str, surveyed: Surveyed, projection: npt.NDArray[np.float32]) -> AnalysedTensor:
        source = surveyed.sources[name]
        divergences = np.square(projection, dtype=np.float64).mean(axis=0)
        errors = surveyed.errors(name)
        candidates = []
        for kind, kl in zip(self.formats[name], divergences.tolist(), strict=True):
            nbytes = source.rows * get(kind).row_bytes(source.columns)
            found = errors[kind]
            candidates.append(Candidate(kind, nbytes, kl, found.weight, found.importance, found.output, found.method))
        return AnalysedTensor(name, source.shape, surveyed.ranges(name), tuple(candidates))

    def _measured(
        self, found: Analysis, surveyed: Surveyed, projections: Projections
    ) -> tuple[tuple[Measured, ...], dict[str, float]]:
        """Hold the estimates against mixes of several sizes, and against tensors rounded alone."""
        groups = fused_groups(list(self.formats), found.container)
        frontier = Frontier(found.options(groups))
        span = frontier.largest - frontier.smallest
        mixes: dict[str, dict[str, str]] = {}
        estimates: dict[str, float] = {}
        together: dict[str, float] = {}
        for share in SHARES:
            mix = spread(frontier.at(round(frontier.smallest + share * span)), groups)
            name = f"{(mix.nbytes + found.kept_bytes) * 8 / found.weights:.2f} bits per weight"
            mixes[name], estimates[name] = dict(mix.formats), mix.loss
            sums = sum(projections[key][:, self.formats[key].index(kind)] for key, kind in mix.formats.items())
            together[name] = float(np.square(sums, dtype=np.float64).mean() / mix.loss) if mix.loss > 0 else 1.0
        count = len(mixes)
        for tensor in _spread(found.tensors, SINGLES):
            one = tensor.candidates[len(tensor.candidates) // 3]
            mixes[f"{tensor.name} as {one.format}"] = {tensor.name: one.format}
            estimates[f"{tensor.name} as {one.format}"] = one.kl
        measured_on = _whole(self.texts.probes, self.texts.calibration.ids.shape[1])
        divergences = measure_mixes(self.decoder, surveyed, measured_on, mixes)
        rows = [
            Measured("mix" if index < count else "single", name, estimates[name], float(divergences[name].kl.mean()))
            for index, name in enumerate(mixes)
        ]
        return tuple(row for row in rows if row.estimated > 0), together


def _spread(tensors: Sequence[AnalysedTensor], count: int) -> list[AnalysedTensor]:
    places = np.linspace(0, len(tensors) - 1, min(count, len(tensors))).round().astype(int)
    return [tensors[place] for place in dict.fromkeys(places.tolist())]

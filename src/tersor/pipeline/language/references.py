"""An artefact and what it is compared with: a checkpoint in transformers, a GGUF in llama.cpp, a stored reference."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tersor.core.errors import MissingError, SchemeError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.engines.transformers_lm import TransformersLm
from tersor.engines.transformers_text import TransformersText
from tersor.evaluation.language.stored import Header, StoredReference, is_stored
from tersor.evaluation.language.streams import Scorer, Subject
from tersor.models import Model, load
from tersor.pipeline.steps.lossless import lossless_gguf

__all__ = ["ENGINES", "TIMEOUT_S", "Reference", "open_reference", "open_subject", "stored_header"]

ENGINES = ("auto", "transformers", "llama.cpp")
TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class Reference:
    """An opened reference: either `scorer` or `stored` is there.

    name    of the model
    engine  what computes it, or computed it
    notes   how it came about, where that is not plain
    """

    name: str
    engine: str
    vocabulary: int
    scorer: Scorer | None = None
    stored: StoredReference | None = None
    notes: tuple[str, ...] = field(default=())


def open_reference(
    against: str | Path | Model, stack: ExitStack, *, context: int, threads: int, engine: str = "auto"
) -> Reference:
    """Open the model to compare with; `stack` closes it.

    engine  "auto": transformers for a checkpoint where it is installed and the model fits, else llama.cpp with a
            lossless GGUF that is made for it. A GGUF always runs in llama.cpp.
    """
    if engine not in ENGINES:
        raise SchemeError(f"the reference engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if not isinstance(against, Model):
        path = Path(against).expanduser()
        if is_stored(path):
            stored = StoredReference(path)
            stack.callback(stored.close)
            header = stored.header
            return Reference(header.reference, f"stored: {header.engine}", header.vocabulary, stored=stored)
    model = against if isinstance(against, Model) else load(against)
    notes: tuple[str, ...] = ()
    folder = model.folder
    if folder is not None and engine != "llama.cpp":
        try:
            if not model.is_its_folder:
                raise MissingError(f"it reads a folder's own weights, and {model.weights[0].name} was named")
            scorer = TransformersLm(folder, name=model.name, weights=_weights(model), threads=threads)
            return Reference(model.name, scorer.version(), scorer.vocabulary_size, scorer)
        except MissingError as missing:
            if engine == "transformers":
                raise
            notes = (f"the reference ran in llama.cpp instead of transformers: {missing}",)
    return _in_llama_cpp(model, stack, context, threads, notes)


def open_subject(path: Path, stack: ExitStack, *, context: int, threads: int) -> Subject:
    """Open the artefact; `stack` closes it. A folder runs in transformers, quantized or not, a GGUF in llama.cpp."""
    if path.is_dir():
        model = load(path)
        return TransformersText(path, context=context, name=model.name, weights=_weights(model), threads=threads)
    return stack.enter_context(LlamaCpp(path, context=context, threads=threads, timeout_s=TIMEOUT_S))


def _weights(model: Model) -> int:
    return sum(tensor.rows * tensor.columns for tensor in model.tensors)


def stored_header(against: str | Path | Model) -> Header | None:
    """What a stored reference says about itself; None for a model."""
    if isinstance(against, Model) or not is_stored(Path(against).expanduser()):
        return None
    stored = StoredReference(Path(against).expanduser())
    stored.close()
    return stored.header


def _in_llama_cpp(model: Model, stack: ExitStack, context: int, threads: int, notes: tuple[str, ...]) -> Reference:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tersor-")))
    path = lossless_gguf(model, folder)
    if path.parent == folder:
        notes = (*notes, "the reference was converted to a GGUF without loss for this comparison")
    engine = stack.enter_context(LlamaCpp(path, context=context, threads=threads, timeout_s=TIMEOUT_S))
    return Reference(model.name, engine.version(), engine.vocabulary_size, engine, notes=notes)

"""Compare an artefact with full precision layer by layer: where error enters, where it grows, what is broken."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tersor.core.errors import MissingError, SchemeError
from tersor.core.evaluation import LayerError
from tersor.engines.activations import Activations
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.checks.corpus import PROSE
from tersor.evaluation.checks.tensors import TensorProgress
from tersor.evaluation.layers.arrivals import with_arrivals
from tersor.evaluation.layers.weights import compare_weights
from tersor.files.gguf import split_paths
from tersor.models import Model, load
from tersor.pipeline.steps.lossless import lossless_gguf

__all__ = ["compare_layers"]

ROWS = 64
"""Positions whose activations are compared; more would change no decibel, and take disk."""
_BYTES_PER_TOKEN = 32
_TIMEOUT_S = 3600.0


def compare_layers(
    artefact: str | Path,
    *,
    against: str | Path | Model,
    data: Path | None = None,
    tokens: int = 256,
    activations: bool = True,
    threads: int = 1,
    progress: TensorProgress | None = None,
) -> tuple[LayerError, ...]:
    """Compare every tensor of the GGUF `artefact`, and the activations on some text, with those of `against`.

    data         UTF-8 text to run, its beginning; None: a text of ours
    tokens       how many tokens of it are run, at most the context of the model; of these at most ROWS are compared,
                 spread evenly, never the first (its activations are of another size in most models)
    activations  False: weights only, which needs no engine and finds every fault too
    threads      of llama.cpp

    Activations go to a temporary folder (about 64 kB a weight matrix and token row for a model of 7 B parameters), and
    a checkpoint is written there as a lossless GGUF first. Raises MissingError, FormatError and EngineError by name.
    """
    path = Path(artefact).expanduser()
    if not path.is_file():
        raise MissingError(f"{path}: not a file; a GGUF is needed" if path.exists() else f"{path}: no such file")
    if tokens < 2:
        raise SchemeError(f"tokens must be at least 2, got {tokens}: the first is not compared")
    path = split_paths(path)[0]
    reference = against if isinstance(against, Model) else load(against)
    subject = load(path)
    if not activations:
        return compare_weights(subject, reference, progress=progress)
    text = _beginning(data, tokens) if data is not None else PROSE
    with tempfile.TemporaryDirectory(prefix="tersor-layers-") as folder:
        source = lossless_gguf(reference, Path(folder))
        length = min(tokens, _context(reference), _context(subject))
        ids, full = _run(source, Path(folder) / "reference.f32", text, length, threads)
        _, rounded = _run(path, Path(folder) / "artefact.f32", ids, length, threads)
        rows = compare_weights(subject, reference, inputs=full, progress=progress)
        return with_arrivals(rows, full, rounded)


def _run(
    path: Path, spool: Path, text: str | Sequence[int], length: int, threads: int
) -> tuple[list[int], Activations]:
    """Trace one model; the inputs of its weights too where it is the first, the one that reads the text."""
    is_first = isinstance(text, str)
    with LlamaCpp(path, context=length, threads=threads, timeout_s=_TIMEOUT_S) as engine:
        ids = engine.tokenize(text, add_special=True)[:length] if isinstance(text, str) else list(text)
        if len(ids) < 2:
            raise SchemeError(f"the text has {len(ids)} tokens; at least 2 are needed")
        kept = np.unique(np.linspace(1, len(ids) - 1, min(ROWS, len(ids) - 1)).round().astype(int))
        return ids, engine.trace(ids, spool, rows=kept.tolist(), inputs=is_first)


def _beginning(data: Path, tokens: int) -> str:
    """Enough of a text file for so many tokens."""
    try:
        with data.open("rb") as file:
            content = file.read(_BYTES_PER_TOKEN * tokens)
    except OSError as error:
        raise MissingError(f"{data}: cannot be read ({error.strerror or error})") from error
    return content.decode("utf-8", errors="ignore")


def _context(model: Model) -> int:
    entry = model.metadata.get(f"{model.architecture}.context_length")
    return entry.value if entry is not None and isinstance(entry.value, int) and entry.value > 1 else 512

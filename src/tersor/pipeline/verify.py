"""Verify an artefact: is it sound, does the engine run it, and is it the model that it came from?"""

from __future__ import annotations

from pathlib import Path

from tersor.core.errors import FormatError, MissingError, TersorError
from tersor.evaluation.checks.corpus import PROSE, mixed_texts
from tersor.evaluation.checks.logits import check_logits
from tersor.evaluation.checks.running import check_running
from tersor.evaluation.checks.structure import check_card, check_structure
from tersor.evaluation.checks.tensors import TensorProgress, check_tensors, method_of
from tersor.evaluation.checks.tokens import check_tokens
from tersor.evaluation.checks.verdict import Check, Verdict
from tersor.files.gguf import split_paths
from tersor.models import Model, load
from tersor.pipeline.calibrated.rewrites import split_rotation
from tersor.pipeline.calibrated.rotated import rotated

__all__ = ["verify"]

MAX_DATA_BYTES = 1 << 20
_PARAGRAPH_CHARACTERS = 2000


def verify(
    artefact: str | Path,
    *,
    against: str | Path | Model | None = None,
    data: Path | None = None,
    tokens: int = 24,
    threads: int = 1,
    progress: TensorProgress | None = None,
) -> Verdict:
    """Check the GGUF `artefact` and return what was found; nothing is written.

    against   the model it was made from: adds the checks of tokens, tensors and logits
    data      a text file: tokens and logits are compared on it too (its first MiB)
    tokens    how many tokens llama.cpp has to generate
    threads   of llama.cpp
    progress  called while tensors are compared

    Always: structure, Card (where one lies beside), loading and generation in llama.cpp. A check whose means are not
    installed is skipped, with the command that installs them. Raises MissingError, FormatError or UnsupportedError
    for an artefact that is not there and a source that cannot be read.
    """
    path = Path(artefact).expanduser()
    if not path.is_file():
        raise MissingError(f"{path}: not a file; verify takes a GGUF" if path.exists() else f"{path}: no such file")
    texts = _read(data) if data is not None else []
    source = load(against) if isinstance(against, (str, Path)) else against
    path = _first_part(path)
    checks = [check_structure(path), check_card(path), check_running(path, tokens=tokens, threads=threads)]
    if source is not None:
        checks += _compared(path, source, texts, threads, progress)
    return Verdict(path.name, source.name if source is not None else "", tuple(checks))


def _compared(
    path: Path, source: Model, texts: list[str], threads: int, progress: TensorProgress | None
) -> list[Check]:
    """Make the checks that need the source; they need a file that can be opened."""
    try:
        artefact = load(path)
    except TersorError as fault:
        # What could not be compared is not proved: without this, a file that llama.cpp alone opens would pass.
        failed = Check("opening", "failed", "the file cannot be opened, so nothing was compared", (str(fault),))
        skipped = (Check(name, "skipped", "the file cannot be opened") for name in ("tokens", "tensors", "logits"))
        return [failed, *skipped]
    tokens = check_tokens(path, source, [*mixed_texts(), *texts])
    is_turned, _ = split_rotation(method_of(artefact))
    tensors = check_tensors(artefact, rotated(source) if is_turned else source, progress)
    error, formats = tensors.numbers["rounding_error"], {tensor.source_dtype for tensor in artefact.tensors}
    logits = check_logits(path, source, [*texts, PROSE], error=error, formats=formats, threads=threads)
    return [tokens, tensors, logits]


def _first_part(path: Path) -> Path:
    """The part that llama.cpp opens a split file by; `path` itself where that one is missing, as structure will say."""
    try:
        return split_paths(path)[0]
    except (FormatError, MissingError):
        return path


def _read(data: Path) -> list[str]:
    """The beginning of a text file, in pieces that end with a line where they can."""
    try:
        with data.open("rb") as file:
            content = file.read(MAX_DATA_BYTES)
    except OSError as error:
        raise MissingError(f"{data}: cannot be read ({error.strerror or error})") from error
    try:
        text = content.decode("utf-8", errors="strict" if len(content) < MAX_DATA_BYTES else "ignore")
    except UnicodeDecodeError as error:
        raise FormatError(f"{data}: not UTF-8 text ({error})") from error
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= _PARAGRAPH_CHARACTERS:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces

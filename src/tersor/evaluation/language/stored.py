"""A reference that was computed once and kept: per token its likeliest tokens, what is known of the rest, its loss.

The file: MAGIC, a little-endian u32 with the length of the header, the header as JSON, the tokens of the text as int32,
then one ROW for each scored token in the order of the windows. Nothing follows. Sizes follow from the header and are
checked against the length of the file before anything is read; values are checked as they are read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError
from tersor.core.records import from_json_text, read_record
from tersor.evaluation.language.comparison import Kept
from tersor.evaluation.language.streams import parts, rows_at_once
from tersor.evaluation.language.windows import FEWEST_CHUNKS, SMALLEST_CONTEXT, Int32Array, Window
from tersor.files.atomic import atomic_writer
from tersor.files.positional import PositionalFile
from tersor.kernels.logits import TopK, token_losses, top_k

__all__ = ["MAGIC", "Header", "StoredReference", "is_stored", "recording", "same_opening", "targets_sha256"]

MAGIC = b"TERSOR-REFERENCE/1\n"
MAX_HEADER = 1 << 20
MAX_TOKENS = 1 << 31
MAX_VOCABULARY = 1 << 24
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says about itself.

    reference, engine  the model, and what computed it
    data, data_sha256  the text
    opening            its first characters, to see whether another model cuts them into the same tokens
    vocabulary         logits per token
    context … seed     as for `windows.cut`
    kept               likeliest tokens per row
    tokens, rows       how many follow
    targets_sha256     of the targets of all windows, as int32
    """

    reference: str
    engine: str
    data: str
    data_sha256: str
    opening: str
    vocabulary: int
    context: int
    stride: int
    begin: int | None
    limit: int | None
    seed: int | None
    kept: int
    tokens: int
    rows: int
    targets_sha256: str


def is_stored(path: Path) -> bool:
    """Tell whether `path` is a stored reference, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def targets_sha256(windows: Sequence[Window]) -> str:
    """Identity of what is predicted: settings and tokens alike."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(np.ascontiguousarray(window.targets, "<i4").tobytes())
    return digest.hexdigest()


def recording(
    path: Path, header: Header, tokens: Int32Array, windows: Sequence[Window], logits: Iterator[Float32]
) -> Iterator[Float32]:
    """Yield `logits` on, writing what is kept of them; the file appears once all have passed, or not at all."""
    if not 1 <= header.kept <= header.vocabulary:
        raise SchemeError(f"{header.kept} tokens of a vocabulary of {header.vocabulary} cannot be kept")
    with atomic_writer(path) as file:
        text = json.dumps(asdict(header)).encode()
        file.write(MAGIC + _LENGTH.pack(len(text)) + text + tokens.astype("<i4").tobytes())
        for (_, _, targets), values in zip(parts(windows, rows_at_once(header.vocabulary)), logits, strict=True):
            _write(file, values, targets, header.kept)
            yield values


def _write(file: BinaryIO, logits: Float32, targets: Int32Array, kept: int) -> None:
    found = top_k(logits, kept)
    rows = np.empty(len(targets), _row(kept))
    rows["ids"], rows["log_probabilities"] = found.ids, found.log_probabilities
    rows["tail_log_mass"], rows["tail_entropy"] = found.tail_log_mass, found.tail_entropy
    rows["loss"] = token_losses(logits, targets)
    file.write(rows.tobytes())


class StoredReference:
    """A stored reference, opened; raises FormatError for a file that is broken, MissingError for none."""

    def __init__(self, path: Path) -> None:
        self._file = PositionalFile(path)
        head = len(MAGIC) + _LENGTH.size
        start = bytes(self._file.read(0, head))
        if not start.startswith(MAGIC):
            raise FormatError(f"{path}: not a stored reference of this version")
        (size,) = _LENGTH.unpack(start[len(MAGIC) :])
        if size > MAX_HEADER:
            raise FormatError(f"{path}: a header of {size} bytes; at most {MAX_HEADER} are read")
        text = bytes(self._file.read(head, size)).decode(errors="replace")
        self.header = header = read_record(Header, from_json_text(text, str(path)), str(path))
        _check(header, path)
        self.path, self._tokens_at, self._rows_at = path, head + size, head + size + 4 * header.tokens
        expected = self._rows_at + header.rows * _row(header.kept).itemsize
        if self._file.size != expected:
            raise FormatError(f"{path}: {self._file.size} bytes, its header says {expected}: truncated or not closed")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def tokens(self) -> Int32Array:
        """The tokens of the whole text."""
        values = np.frombuffer(bytes(self._file.read(self._tokens_at, 4 * self.header.tokens)), "<i4").astype(np.int32)
        if values.size and not (values.min() >= 0 and values.max() < self.header.vocabulary):
            raise FormatError(f"{self.path}: a token is outside of the vocabulary of {self.header.vocabulary}")
        return values

    def check_windows(self, windows: Sequence[Window]) -> None:
        """Raise FormatError where these are not the windows that were recorded."""
        rows = sum(len(window.targets) for window in windows)
        if rows != self.header.rows or targets_sha256(windows) != self.header.targets_sha256:
            raise FormatError(f"{self.path}: its rows are not those of its tokens and settings; record it again")

    def slices(self, windows: Sequence[Window]) -> Iterator[Kept]:
        """Yield what was recorded, cut as `streams.logits_of` cuts with the recorded vocabulary."""
        row = _row(self.header.kept)
        at = self._rows_at
        for _, _, targets in parts(windows, rows_at_once(self.header.vocabulary)):
            data = self._file.read(at, len(targets) * row.itemsize)
            at += len(data)
            yield self._checked(np.frombuffer(bytes(data), row))

    def _checked(self, rows: npt.NDArray[np.void]) -> Kept:
        ids, logs, loss = rows["ids"].astype(np.int32), rows["log_probabilities"].astype(np.float32), rows["loss"]
        mass, entropy = rows["tail_log_mass"].astype(np.float64), rows["tail_entropy"].astype(np.float64)
        ordered = np.sort(ids, axis=1)
        is_sound = (
            bool((ids >= 0).all() and (ids < self.header.vocabulary).all())
            and bool((ordered[:, 1:] != ordered[:, :-1]).all())
            and bool((logs <= 0).all() and (logs[:, 1:] <= logs[:, :-1]).all())
            and bool((mass <= 1e-6).all() and (entropy <= 1e-6).all() and (loss >= 0).all())
        )
        if not is_sound:
            raise FormatError(f"{self.path}: a row holds what is no distribution: ids, probabilities or loss are wrong")
        return Kept(TopK(ids, logs, mass, entropy), loss.astype(np.float64))


def same_opening(header: Header, tokens: Int32Array, tokenize: Callable[[str], Int32Array]) -> bool:
    """Tell whether `tokenize` cuts the opening of the text as was recorded; its last tokens may go on differently."""
    found = tokenize(header.opening)
    length = max(0, len(found) - 16)
    return bool(np.array_equal(found[:length], tokens[:length]))


def _row(kept: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("ids", "<i4", (kept,)),
            ("log_probabilities", "<f4", (kept,)),
            ("tail_log_mass", "<f8"),
            ("tail_entropy", "<f8"),
            ("loss", "<f8"),
        ]
    )


def _check(header: Header, path: Path) -> None:
    ranges = {
        "vocabulary": (header.vocabulary, 1, MAX_VOCABULARY),
        "kept": (header.kept, 1, header.vocabulary),
        "tokens": (header.tokens, FEWEST_CHUNKS * header.context, MAX_TOKENS),
        "rows": (header.rows, 1, MAX_TOKENS),
        "context": (header.context, SMALLEST_CONTEXT, MAX_TOKENS),
        "stride": (header.stride, 0, header.context // 2),
        "limit": (FEWEST_CHUNKS if header.limit is None else header.limit, FEWEST_CHUNKS, MAX_TOKENS),
        "seed": (header.seed or 0, 0, 1 << 64),
        "begin": (header.begin or 0, 0, header.vocabulary - 1),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise FormatError(f"{path}: {name} is {value}, it must be {low} to {high}")

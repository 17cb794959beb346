"""Calibration text from wherever it lies: files, folders, JSON lines, Parquet, `datasets` ids, or this Python's own.

A corpus is small (megabytes), so it is read whole, up to MAX_BYTES; what was read is named and hashed for the Card.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

from tersor.core.errors import FormatError, MissingError
from tersor.files.hashing import written_name

__all__ = ["BUILT_IN", "MAX_BYTES", "Corpus", "Document", "read_corpus"]

BUILT_IN = "builtin"
"""The name of the text that needs no file: source and reference pages of the Python that runs."""
MAX_BYTES = 64 << 20
MAX_LINE_BYTES = 8 << 20
PLAIN_SUFFIXES = (".txt", ".md", ".rst", ".raw", ".utf8", ".text", ".py", ".html", ".tex", ".csv", ".tsv")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
TEXT_FIELDS = ("text", "content", "document", "code", "article", "sentence")
CHAT_FIELDS = ("messages", "conversation", "conversations")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or one conversation: (role, content) pairs, for which `text` is empty."""

    text: str
    messages: tuple[tuple[str, str], ...] = ()

    @property
    def characters(self) -> int:
        """Characters of the text, or of what all have said."""
        return len(self.text) + sum(len(content) for _, content in self.messages)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents with their name and the SHA-256 of their contents in order."""

    name: str
    documents: tuple[Document, ...]
    sha256: str

    @property
    def characters(self) -> int:
        """Characters of all documents."""
        return sum(document.characters for document in self.documents)


def read_corpus(source: str | Path, *, field: str | None = None, max_bytes: int = MAX_BYTES) -> Corpus:
    """Read calibration text.

    source     BUILT_IN, a file, a folder (every readable file in it, by name), or "dataset-id[:config][:split]"
    field      which field of a row holds the text or the messages; None: the first of the usual names
    max_bytes  stop after about this much

    JSON lines, JSON lists and Parquet hold rows; a row has a text, or messages with role and content. Raises
    MissingError where there is nothing to read or a library is missing, FormatError for what is no text.
    """
    path = Path(source).expanduser()
    if str(source) == BUILT_IN:
        name, found = BUILT_IN, _built_in()
    elif path.is_dir():
        name, found = written_name(path.resolve().name), _folder(path, field)
    elif path.is_file():
        name, found = written_name(path.name), _file(path, field)
    elif _is_named_as_file(path) or str(source).startswith((".", "/", "~")) or not str(source).strip():
        raise MissingError(f"{source}: no such file or folder of calibration text")
    else:
        name, found = str(source), _dataset(str(source), field)
    documents, digest, size = [], hashlib.sha256(), 0
    for document in found:
        content = document.text or json.dumps(document.messages, ensure_ascii=False)
        data = content.encode("utf-8", errors="replace")
        digest.update(len(data).to_bytes(8, "little") + data)
        documents.append(document)
        size += len(data)
        if size >= max_bytes:
            break
    if not any(document.text.strip() or document.messages for document in documents):
        raise MissingError(f"{source}: holds no text to calibrate on")
    return Corpus(name, tuple(documents), digest.hexdigest())


def _is_named_as_file(path: Path) -> bool:
    """Whether the name ends as one of text does; ids of data sets have dots of their own."""
    return path.suffix.lower() in (*PLAIN_SUFFIXES, *ROW_SUFFIXES)


def _folder(folder: Path, field: str | None) -> Iterator[Document]:
    files = sorted(path for path in folder.rglob("*") if _is_named_as_file(path) and path.is_file())
    if not files:
        endings = " ".join((*PLAIN_SUFFIXES, *ROW_SUFFIXES))
        raise MissingError(f"{folder}: holds no file with one of the endings {endings}")
    for path in files:
        yield from _file(path, field)


def _file(path: Path, field: str | None) -> Iterator[Document]:
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            yield from _rows(_json_lines(path), field, path)
        case ".json":
            yield from _rows(_json_list(path), field, path)
        case ".parquet":
            yield from _rows(_parquet(path), field, path)
        case _:
            yield Document(_read_text(path))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
        return content.decode("utf-8", errors="strict" if len(content) < MAX_BYTES else "ignore")
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text ({error}); calibrate on text, not on a binary file") from error


def _json_lines(path: Path) -> Iterator[object]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise FormatError(
                        f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes, the most that is read; "
                        "make several rows of it"
                    )
                if line.strip():
                    yield _parsed(line, f"{path}, line {number}")
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error


def _json_list(path: Path) -> Iterator[object]:
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(
            f"{path}: longer than {MAX_BYTES} bytes, the most that is read, and half a list is no JSON; give a shorter "
            "one, or JSON lines (.jsonl), of which the first are taken"
        )
    document = _parsed(_read_text(path).encode(), str(path))
    if not isinstance(document, list):
        raise FormatError(f"{path}: a JSON list of rows is needed, got {type(document).__name__}")
    yield from document


def _parsed(content: bytes, place: str) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{place}: not JSON ({error})") from error


def _parquet(path: Path) -> Iterator[object]:
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingError(f"reading {path.name} needs pyarrow: pip install pyarrow") from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path}: not a readable Parquet file ({error})") from error


def _dataset(name: str, field: str | None) -> Iterator[Document]:
    try:
        import datasets  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingError(
            f"{name}: no such file; to take it as a Hugging Face dataset: pip install datasets"
        ) from error
    parts = name.split(":")
    try:
        rows = datasets.load_dataset(
            parts[0], parts[1] if len(parts) > 1 and parts[1] else None, split=parts[2] if len(parts) > 2 else "train",
            streaming=True,
        )  # fmt: skip
        yield from _rows(rows, field, Path(name))
    except (OSError, ValueError, ConnectionError) as error:
        raise MissingError(f"{name}: cannot be had as a dataset ({error}); form: id[:config][:split]") from error


def _rows(rows: Iterable[object], field: str | None, place: Path) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield Document(row)
            continue
        if not isinstance(row, Mapping):
            raise FormatError(f"{place}, row {number}: an object or a string is needed, got {type(row).__name__}")
        name = field or next((key for key in (*TEXT_FIELDS, *CHAT_FIELDS) if key in row), None)
        if name is None or name not in row:
            raise FormatError(
                f"{place}, row {number}: no field {field or 'with a usual name'}; it has {', '.join(map(str, row))}. "
                "Name the one to take (--calibration-field)"
            )
        value = row[name]
        yield Document(value) if isinstance(value, str) else Document("", _messages(value, f"{place}, row {number}"))


def _messages(value: Any, place: str) -> tuple[tuple[str, str], ...]:
    made = []
    for message in value if isinstance(value, list) else [value]:
        if not isinstance(message, Mapping):
            raise FormatError(f"{place}: a message must be an object with role and content, got {message!r:.60}")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise FormatError(f"{place}: a message needs the texts role and content, got {dict(message)!r:.80}")
        made.append((_ROLES.get(role, role), content))
    return tuple(made)


def _built_in() -> Iterator[Document]:
    """The pages of Python's reference in English, and its standard library's source, by name, in turn.

    They differ from release to release; the hash in the Card tells which were taken.
    """
    pages: Mapping[str, str] = topics.topics
    prose = [text for _, text in sorted(pages.items())]
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for path in sorted(library.glob("*.py")) if path.stat().st_size > 4096]
    for index in range(max(len(prose), len(sources))):
        if index < len(prose):
            yield Document(prose[index])
        if index < len(sources):
            yield Document(sources[index].read_text(encoding="utf-8", errors="replace"))

"""Reading GGUF files, whole or split, a range of rows at a time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tersor.core.arrays import Bytes
from tersor.core.errors import FormatError, MissingError, ShapeError
from tersor.core.metadata import MetadataEntry, MetadataValue
from tersor.files.closing import Closing
from tersor.files.gguf_header import BLOCKS, GgufHeader, GgufTensor, parse_header
from tersor.files.positional import PositionalFile

__all__ = ["BLOCKS", "GgufFile", "GgufTensor", "check", "split_paths"]

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


class GgufFile(Closing):
    """A GGUF file, checked when opened; for a split one, any of its parts opens the whole.

    metadata   key → value (arrays as lists), without the `split.*` keys
    entries    the same with their types
    tensors    name → GgufTensor, in file order
    paths      the parts, in order
    Raises FormatError naming the first broken rule, MissingError when a part is not there.
    """

    def __init__(self, path: Path) -> None:
        self.paths = split_paths(path)
        self._files: list[PositionalFile] = []
        self._file_of: dict[str, PositionalFile] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            headers = [self._open(part) for part in self.paths]
        except BaseException:
            self.close()
            raise
        problems = _split_problems(headers, self.paths)
        if problems:
            self.close()
            raise FormatError(f"{path}: {problems[0]}")
        self.version = headers[0].version
        self.alignment = headers[0].alignment
        self.entries: dict[str, MetadataEntry] = {
            key: entry for key, entry in headers[0].entries.items() if key not in _SPLIT_KEYS
        }
        self.metadata: dict[str, MetadataValue] = {key: entry.value for key, entry in self.entries.items()}

    def read_bytes(self, name: str, start_row: int = 0, stop_row: int | None = None) -> Bytes:
        """Return rows as stored: uint8 [rows, row_bytes], the leading axes flattened into rows."""
        tensor = self.tensors[name]
        row_bytes = tensor.row_bytes
        rows = tensor.nbytes // row_bytes
        stop = rows if stop_row is None else stop_row
        if not 0 <= start_row <= stop <= rows:
            raise ShapeError(f"{name} {tensor.shape}: rows {start_row} to {stop} asked for, it has {rows}")
        data = self._file_of[name].read(tensor.offset + start_row * row_bytes, (stop - start_row) * row_bytes)
        return np.frombuffer(data, dtype=np.uint8).reshape(stop - start_row, row_bytes)

    def close(self) -> None:
        """Release the files."""
        for file in self._files:
            file.close()

    def _open(self, path: Path) -> GgufHeader:
        file = PositionalFile(path)
        self._files.append(file)
        header = parse_header(file)
        if header.problems:
            more = f" (and {len(header.problems) - 1} more problems)" if len(header.problems) > 1 else ""
            raise FormatError(f"{path}: {header.problems[0]}{more}")
        for name, tensor in header.tensors.items():
            if name in self.tensors:
                raise FormatError(f"{path}: the tensor {name!r} is also in {self._file_of[name].path.name}")
            self.tensors[name] = tensor
            self._file_of[name] = file
        return header


def check(path: Path) -> list[str]:
    """Return every structural rule that the file (or any part of a split one) breaks; empty when it is sound."""
    headers: list[GgufHeader] = []
    problems: list[str] = []
    try:
        paths = split_paths(path)
        for part in paths:
            with PositionalFile(part) as file:
                headers.append(parse_header(file))
            problems += [f"{part.name}: {problem}" for problem in headers[-1].problems]
    except (FormatError, MissingError) as error:
        return [*problems, str(error)]
    return problems + _split_problems(headers, paths)


def split_paths(path: Path) -> list[Path]:
    """Return all parts of the split file that `path` belongs to, or `path` alone; MissingError names absent parts."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count, number = int(match["count"]), int(match["number"])
    if not 1 <= number <= count:
        raise FormatError(f"{path}: part {number} of {count} cannot be")
    parts = [path.with_name(f"{match['stem']}-{index:05d}-of-{count:05d}.gguf") for index in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise MissingError(f"{path}: {len(missing)} of {count} parts are missing, the first is {missing[0]}")
    return parts


def _split_problems(headers: list[GgufHeader], paths: list[Path]) -> list[str]:
    """Check that the parts say of themselves what their names say, and hold as many tensors as they claim."""
    problems: list[str] = []
    if len(headers) == 1 and "split.count" not in headers[0].entries:
        return problems
    for index, (header, path) in enumerate(zip(headers, paths, strict=True)):
        said = [header.entries[key].value if key in header.entries else None for key in _SPLIT_KEYS[:2]]
        if said != [index, len(paths)]:
            problems.append(
                f"{path.name}: split.no, split.count are {said[0]}, {said[1]}; {index}, {len(paths)} are needed"
            )
    total = headers[0].entries.get("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if total is not None and total.value != found:
        problems.append(f"{paths[0].name}: split.tensors.count is {total.value}, the parts hold {found} tensors")
    return problems

"""What an ExecuTorch program says of itself: its memory plan, what it hands to a delegate, which kernels it calls.

Source: schema/program.fbs of ExecuTorch 1.5 (file identifier ET12), and the extended header behind it. A flat buffer is
a tree of tables; each begins with the distance back to its list of fields. Nothing in the file is believed: every
place is checked against the end of the program before it is read.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import FormatError
from tersor.files.positional import PositionalFile

__all__ = ["PteProgram", "read_pte"]

IDENTIFIER, EXTENDED = b"ET12", b"eh00"
HEADER = 32
LARGEST_PROGRAM = 256 << 20
"""Bytes without weights, which lie in segments behind the program."""
LARGEST_LIST, LARGEST_PLAN = 1 << 20, 1 << 62
KERNEL, DELEGATE = 1, 2
"""Kinds of instructions."""


@dataclass(frozen=True, slots=True)
class PteProgram:
    """The first method of a program.

    nbytes         of the file
    planned_bytes  that the runtime takes before it runs anything: inputs, outputs, and what stands between kernels and
                   delegates; what a delegate needs inside is not in it
    kernels        name → calls of operators that the runtime's own kernels compute, one thread and no delegate
    delegates      name of the backend → calls
    """

    name: str
    nbytes: int
    planned_bytes: int
    kernels: dict[str, int]
    delegates: dict[str, int]


def read_pte(path: Path) -> PteProgram:
    """Read a .pte file; FormatError where it is broken or another kind of file."""
    with PositionalFile(path) as file:
        head = bytes(file.read(0, min(HEADER, file.size)))
        if len(head) < HEADER or head[4:8] != IDENTIFIER:
            raise FormatError(f"{path.name}: not an ExecuTorch program: it has no {IDENTIFIER.decode()} at byte 4")
        size = file.size
        if head[8:12] == EXTENDED:
            (size,) = struct.unpack_from("<Q", head, 16)
        if not HEADER <= size <= min(file.size, LARGEST_PROGRAM):
            raise FormatError(f"{path.name}: a program of {size:,} bytes in a file of {file.size:,}")
        data = bytes(file.read(0, size))
        nbytes = file.size
    try:
        return _program(_Table(data, _number(data, "<I", 0)), nbytes)
    except (struct.error, UnicodeDecodeError, _BrokenError) as error:
        raise FormatError(f"{path.name}: a broken ExecuTorch program ({error})") from error


class _BrokenError(Exception):
    """A place outside of the program."""


def _program(root: _Table, nbytes: int) -> PteProgram:
    plans = list(root.tables(1))
    if not plans:
        raise _BrokenError("it has no method")
    plan = plans[0]
    operators = [".".join(filter(None, (row.text(0), row.text(1)))) for row in plan.tables(6)]
    backends = [row.text(0) for row in plan.tables(7)]
    kernels, delegates = Counter[str](), Counter[str]()
    for chain in plan.tables(5):
        for instruction in chain.tables(2):
            kind = instruction.byte(0)
            if kind in (KERNEL, DELEGATE):
                names, found = (operators, kernels) if kind == KERNEL else (backends, delegates)
                place = instruction.table(1).integer(0)
                if not 0 <= place < len(names):
                    raise _BrokenError(f"an instruction calls number {place} of {len(names)}")
                found[names[place]] += 1
    sizes = list(plan.longs(8))
    if any(not 0 <= size < LARGEST_PLAN for size in sizes):
        raise _BrokenError(f"a memory plan of {sizes}")
    return PteProgram(plan.text(0), nbytes, sum(sizes), dict(kernels), dict(delegates))


@dataclass(frozen=True, slots=True)
class _Table:
    data: bytes
    place: int

    def _field(self, number: int) -> int | None:
        """Return where a field lies; None where it has its default."""
        fields = self.place - _number(self.data, "<i", self.place)
        entry = 4 + 2 * number
        if entry + 2 > _number(self.data, "<H", fields):
            return None
        offset = _number(self.data, "<H", fields + entry)
        return self.place + offset if offset else None

    def byte(self, number: int) -> int:
        place = self._field(number)
        return 0 if place is None else _number(self.data, "<B", place)

    def integer(self, number: int) -> int:
        place = self._field(number)
        return 0 if place is None else _number(self.data, "<i", place)

    def table(self, number: int) -> _Table:
        place = self._field(number)
        if place is None:
            raise _BrokenError(f"the table at byte {self.place} has no field {number}")
        return _Table(self.data, place + _number(self.data, "<I", place))

    def text(self, number: int) -> str:
        place = self._field(number)
        if place is None:
            return ""
        place += _number(self.data, "<I", place)
        length = _number(self.data, "<I", place)
        if place + 4 + length > len(self.data):
            raise _BrokenError(f"a text of {length} bytes at byte {place}")
        return self.data[place + 4 : place + 4 + length].decode()

    def tables(self, number: int) -> Iterator[_Table]:
        for place in self._elements(number, 4):
            yield _Table(self.data, place + _number(self.data, "<I", place))

    def longs(self, number: int) -> Iterator[int]:
        for place in self._elements(number, 8):
            yield _number(self.data, "<q", place)

    def _elements(self, number: int, size: int) -> Iterator[int]:
        place = self._field(number)
        if place is None:
            return
        place += _number(self.data, "<I", place)
        count = _number(self.data, "<I", place)
        if count > LARGEST_LIST or place + 4 + count * size > len(self.data):
            raise _BrokenError(f"a list of {count} at byte {place}")
        yield from range(place + 4, place + 4 + count * size, size)


def _number(data: bytes, kind: str, place: int) -> int:
    if place < 0 or place + struct.calcsize(kind) > len(data):
        raise _BrokenError(f"byte {place} of {len(data)}")
    found: int = struct.unpack_from(kind, data, place)[0]
    return found

"""Programs of ExecuTorch: what they say of themselves, and what is refused."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import FormatError, MissingError
from tersor.files.pte import read_pte

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden_program.json").read_text())
DATA = base64.b64decode(GOLDEN["program"])


def written(folder: Path, data: bytes) -> Path:
    path = folder / "net.pte"
    path.write_bytes(data)
    return path


def test_a_program_says_what_executorch_reads_in_it(tmp_path: Path) -> None:
    found = read_pte(written(tmp_path, DATA))
    assert (found.name, found.nbytes) == ("forward", len(DATA))
    assert found.planned_bytes == GOLDEN["planned_bytes"]
    assert sorted(found.kernels) == sorted(GOLDEN["operators"])
    assert sorted(found.delegates) == sorted(set(GOLDEN["delegates"]))
    assert found.kernels == {"aten::cumsum.out": 1}
    assert found.delegates == {"XnnpackBackend": 1}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not an ExecuTorch program"),
        (b"GGUF" * 20, "not an ExecuTorch program"),
        (DATA[:16], "not an ExecuTorch program"),
        (DATA[:200], "a program of"),
        (DATA[:16] + struct.pack("<Q", 1 << 60) + DATA[24:], "a program of"),
        (struct.pack("<I", 1 << 30) + DATA[4:], "byte 1073741824 of"),
    ],
)
def test_what_is_no_program_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(FormatError, match=told):
        read_pte(written(tmp_path, data))
    with pytest.raises(MissingError):
        read_pte(tmp_path / "absent.pte")


def test_mutated_programs_are_read_or_refused_at_once(tmp_path: Path) -> None:
    drawn, refused, slowest = random.Random(0), 0, 0.0
    for _ in range(1000):
        data = bytearray(DATA)
        for _ in range(drawn.randint(1, 4)):
            place = drawn.randrange(8, len(data) - 4)
            struct.pack_into("<I", data, place, drawn.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
        began = time.perf_counter()
        try:
            read_pte(written(tmp_path, bytes(data[: drawn.choice((len(data), len(data), drawn.randrange(40, 900)))])))
        except FormatError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - began)
    assert refused > 100
    assert slowest < 1

"""ExecuTorch's compiler and runtime, in their child processes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError, MissingError, ShapeError
from tersor.engines.executorch import program as module
from tersor.engines.executorch.program import Program, has_executorch, lower

needed = pytest.mark.skipif(not has_executorch(), reason="programs for phones: pip install 'tersor[mobile]'")
GOLDEN = json.loads((Path(__file__).parents[2] / "files" / "golden_program.json").read_text())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "sums.pte"
    target.write_bytes(base64.b64decode(GOLDEN["program"]))
    return target


@needed
def test_a_program_of_an_earlier_day_answers_as_it_did(path: Path) -> None:
    given = np.array(GOLDEN["input"], np.float32)
    with Program(path, threads=1) as program:
        np.testing.assert_allclose(program.run([given])[0], GOLDEN["output"], rtol=1e-6)
        (many,) = program.run([np.repeat(given, 3, 0)])
        np.testing.assert_allclose(many, np.repeat(GOLDEN["output"], 3, 0), rtol=1e-6)
        times = program.times_ms([given], seconds=0.05)
        assert len(times) >= module.LEAST_ROUNDS
        assert all(time > 0 for time in times)
        assert all(time > 0 for time in program.times_ms([given], seconds=0.01, processor=True))
        assert program.threads == 1
        with pytest.raises(ShapeError, match="inputs of"):
            program.run([given[:0]])
        with pytest.raises(EngineError, match=r"ExecuTorch, run sums\.pte"):
            program.run([np.ones((1, 2, 9), np.float32)])
    program.close()


@needed
def test_a_broken_program_is_an_error_of_the_engine(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60:400] = bytes(340)
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"ExecuTorch, loading sums\.pte"):
        Program(path)


@needed
def test_what_cannot_be_lowered_is_told_with_the_words_of_the_compiler() -> None:
    with pytest.raises(EngineError, match="ExecuTorch's compiler, loading a net: "):
        lower(b"no program", "a net")


def test_an_absent_file_or_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for call in (lambda: Program(tmp_path / "net.pte"), lambda: lower(b"")):
        with pytest.raises(MissingError, match=r"pip install 'tersor\[mobile\]'"):
            call()
    monkeypatch.undo()
    if has_executorch():
        with pytest.raises(MissingError, match=r"net.pte: no such file"):
            Program(tmp_path / "net.pte")

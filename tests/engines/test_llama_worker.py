from __future__ import annotations

import ctypes.util
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.core.errors import EngineError
from tersor.engines import llama_cpp, llama_worker


def test_a_layout_that_is_not_the_documented_one_is_refused() -> None:
    parameters = llama_worker._ContextParameters()
    for name, value in llama_worker._ContextParameters.defaults.items():
        if not isinstance(value, list):
            setattr(parameters, name, value)
    parameters.rope[:] = [0.0, 0.0, -1.0, -1.0, -1.0, -1.0]
    assert llama_worker._checked(parameters) is parameters
    parameters.micro_batch = 513
    with pytest.raises(Exception, match=r"layout: ContextParameters\.micro_batch holds 513 where 512 was expected"):
        llama_worker._checked(parameters)


def test_the_parent_says_which_release_a_foreign_layout_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "llama_worker.py"
    source = Path(llama_worker.__file__).read_text().replace('"micro_batch": 512', '"micro_batch": 77')
    foreign.write_text(source.replace('"gpu_layers": -1', '"gpu_layers": 99'))
    monkeypatch.setattr(llama_cpp, "__file__", str(tmp_path / "llama_cpp.py"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match=rf"layout: .*xllamacpp {llama_cpp.SUPPORTED} is supported: pip install"):
        llama_cpp.load_check(tmp_path / "m.gguf")


def test_a_library_without_the_functions_is_named(tmp_path: Path) -> None:
    worker = str(Path(llama_worker.__file__))
    library = str(ctypes.util.find_library("c"))
    command = [sys.executable, "-I", "-S", worker, library, str(tmp_path), "{}"]
    result = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert b"the llama.cpp library cannot be used" in result.stdout
    assert result.returncode == 0

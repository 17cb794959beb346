from __future__ import annotations

import ctypes.util
import json
from pathlib import Path

import pytest

from tersor.core.errors import EngineError
from tersor.engines import child, llama_cpp
from tersor.engines.llama import api

OPTIONS = json.dumps({"context": 32, "batch_bytes": 1 << 20, "threads": 1, "vocabulary_only": False})


def test_a_layout_that_is_not_the_documented_one_is_refused() -> None:
    parameters = api.ContextParameters()
    for name, value in api.ContextParameters.defaults.items():
        if not isinstance(value, list):
            setattr(parameters, name, value)
    parameters.rope[:] = [0.0, 0.0, -1.0, -1.0, -1.0, -1.0]
    assert api.checked(parameters) is parameters
    parameters.micro_batch = 513
    with pytest.raises(api.RefusalError, match=r"layout: ContextParameters\.micro_batch holds 513 where 512 was"):
        api.checked(parameters)


def test_the_parent_says_which_release_a_foreign_layout_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(llama_cpp.__file__).parents[1]
    for name in ("__init__.py", "engines/__init__.py", "engines/frames.py"):
        (tmp_path / "tersor" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tersor" / name).write_text((package / name).read_text())
    for path in (package / "engines" / "llama").glob("*.py"):
        foreign = tmp_path / "tersor" / "engines" / "llama" / path.name
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_text(path.read_text().replace('"gpu_layers": -1', '"gpu_layers": 99'))
    monkeypatch.setattr(child, "_ROOT", tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match=rf"layout: .*xllamacpp {llama_cpp.SUPPORTED} is supported: pip install"):
        llama_cpp.LlamaCpp(tmp_path / "m.gguf")


def test_a_library_without_the_functions_is_named(tmp_path: Path) -> None:
    library = str(ctypes.util.find_library("c"))
    with pytest.raises(EngineError, match=r"the llama\.cpp library cannot be used"):
        child.Child(
            "tersor.engines.llama.worker",
            [library, str(tmp_path), OPTIONS],
            subject="a file",
            engine="llama.cpp",
            environment={},
            timeout_s=30,
        )

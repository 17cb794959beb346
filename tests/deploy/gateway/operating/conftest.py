"""A deployment whose artefacts stand in a registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tersor.deploy.registry.registry import Registry

REGISTERED = """
registry: .
models:
  demo:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: llama.cpp, path: small.gguf, context: 512}
      full: {engine: llama.cpp, path: full.gguf, context: 512}
    limits: {in_flight: 4, queue: 40, deadline_s: 20}
"""


@pytest.fixture
def folder(artefacts: Path, tmp_path: Path) -> Path:
    """A folder with copies of all artefacts, for what changes files."""
    for file in artefacts.glob("*.gguf"):
        shutil.copy(file, tmp_path)
    shutil.copy(artefacts / "twice.onnx", tmp_path)
    return tmp_path


@pytest.fixture
def registered(folder: Path) -> Path:
    """A deployment in a folder that is a registry too, in which `small` has passed its gate."""
    place = folder / "served" / "deploy.yaml"
    place.parent.mkdir()
    for name in ("small", "full"):
        shutil.move(folder / f"{name}.gguf", place.parent)
    with Registry.open(place.parent, mode="create") as opened:
        opened.add_artefact("full", place.parent / "full.gguf", who="ann")
        opened.add_artefact("small", place.parent / "small.gguf", who="ann", baseline="full")
        opened.record_verdict("small", "pass", {"kl_mean": 0.01}, who="gate")
    place.write_text(REGISTERED)
    return place

"""Artefacts of candidates: one as good as full precision, and one that is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tersor
from tersor import reference_model


@pytest.fixture(scope="session")
def candidates(artefacts: Path) -> Path:
    """The folder of artefacts, with a good and a bad candidate."""
    source = Path(reference_model.__file__).parent
    tersor.quantize(source, "q8_0", output=artefacts / "good.gguf")
    tersor.quantize(source, "q2_k", output=artefacts / "bad.gguf")
    return artefacts


@pytest.fixture
def place(candidates: Path, tmp_path: Path) -> Path:
    """A folder of its own with the artefacts of a rollout."""
    for name in ("full", "good", "bad", "garbage"):
        shutil.copy(candidates / f"{name}.gguf", tmp_path)
    return tmp_path

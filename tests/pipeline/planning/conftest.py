"""A tiny model with text, and its analysis, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.neighbours import neighbour

from tersor.models import Model, load
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.planning.analysing import Studied, Study, analyse

FORMATS = ("q4_0", "q5_0", "q8_0", "q2_k")
"""The last does not fit the rows of the tiny model."""


_models, _calibrated = neighbour("models/conftest", "planning"), neighbour("pipeline/calibrated/conftest", "planning")
plain_tokenizer, build = _models.plain_tokenizer, _models.build
SHAPE: dict[str, Any] = _calibrated.SHAPE
WORDS: list[str] = _calibrated.SENTENCE.split()


@dataclass(frozen=True)
class Case:
    """A tiny model, text, and what its analysis was asked."""

    model: Model
    study: Study
    folder: Path
    studied: Studied


@pytest.fixture
def make(build: Any) -> Callable[..., Model]:
    """Return a function that builds a tiny model of a config class."""

    def made(config: str = "LlamaConfig", **settings: Any) -> Model:
        return load(build(config, **{**SHAPE, "initializer_range": 0.4, **settings}).folder)

    return made


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Ask for a small analysis by gptq."""
    path = tmp_path / "words.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 12000)))
    return Study(FORMATS, "gptq", Calibration(path, sequences=160, length=32), threads=1)


@pytest.fixture
def case(make: Callable[..., Model], study: Study, tmp_path: Path) -> Case:
    """Return an analysed tiny Llama."""
    model = make(tie_word_embeddings=True)
    return Case(model, study, tmp_path / "analysis", analyse(model, tmp_path / "analysis", study))

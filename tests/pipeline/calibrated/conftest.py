"""A tiny dense model and a tiny mixture of experts, with text to calibrate on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.neighbours import neighbour

from tersor.models import Model, load

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SENTENCE = "the cat sat on mat and saw a dog that ran to its house by sea when rain fell over hill"


_models = neighbour("models/conftest", "calibrated")
plain_tokenizer, build = _models.plain_tokenizer, _models.build


@pytest.fixture
def make(build: Any) -> Callable[..., Model]:
    """Return a function that builds a tiny model of a config class."""

    def made(config: str = "LlamaConfig", **settings: Any) -> Model:
        return load(build(config, **{**SHAPE, **settings}).folder)

    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Three thousand words."""
    path = tmp_path / "words.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(SENTENCE.split(), 3000)))
    return path

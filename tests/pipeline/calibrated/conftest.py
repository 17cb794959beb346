"""A tiny dense model and a tiny mixture of experts, with text to calibrate on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

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


def _neighbour(path: str) -> ModuleType:
    name = "calibrated_sees_" + path.replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_models = _neighbour("models/conftest")
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

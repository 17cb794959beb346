"""A tiny model whose output matrix is its own or its embedding, and its candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tersor.analyse.survey import Surveyed, Surveyor
from tersor.calibrate.sequences import Sequences
from tersor.calibrate.stream import Setting, run_blocks
from tersor.calibrate.workspace import Workspace
from tersor.containers.mixtures import is_quantizable
from tersor.decoder import Decoder
from tersor.methods import METHODS
from tersor.models import Model, load

FORMATS = ("q4_0", "q5_1", "q8_0")


@dataclass(frozen=True)
class Case:
    """A model, texts, and every candidate of its matrices."""

    model: Model
    decoder: Decoder
    ids: Any
    surveyed: Surveyed
    folder: Path


@pytest.fixture
def case(tiny_gguf: Callable[..., Path], tmp_path: Path) -> Callable[..., Case]:
    """Return what surveys a tiny model: with `tied` its output matrix is the embedding."""

    def make(*, tied: bool = False, method: str = "gptq", formats: tuple[str, ...] = FORMATS) -> Case:
        model = load(str(tiny_gguf()))
        if tied:
            model = replace(model, tensors=tuple(t for t in model.tensors if t.name != "output.weight"))
        decoder = Decoder(model)
        random = np.random.default_rng(5)
        text = Sequences(random.integers(0, decoder.vocabulary, (6, 32)), "random", "0" * 64)
        sources = {tensor.name: tensor for tensor in model.tensors}
        wanted = {tensor.name: formats for tensor in model.tensors if is_quantizable(tensor)}
        folder = tmp_path / f"work-{tied}-{method}"
        surveyor = Surveyor(
            wanted,
            sources,
            (method, METHODS[method]),
            decoder.layers,
            Workspace(folder, {"a": 1}, resume=True),
            threads=1,
        )
        with torch.no_grad():
            run_blocks(decoder, text, surveyor, Setting(stepwise=False))
        ids = random.integers(0, decoder.vocabulary, (160, 16))
        return Case(model, decoder, ids, Surveyed(surveyor.workspace, wanted, sources, decoder.layers), folder)

    return make

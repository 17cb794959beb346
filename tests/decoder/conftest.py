"""The tiny models of `tests/models`, and running them through the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.neighbours import neighbour

from tersor.decoder import Decoder, Observer
from tersor.models import Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")


_models, _parity = neighbour("models/conftest", "decoder"), neighbour("models/test_parity", "decoder")
plain_tokenizer, build, write_f32 = _models.plain_tokenizer, _models.build, _models.write_f32
VOCABULARY: int = _models.VOCABULARY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `case` on the tiny configurations of every architecture row."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _parity.CASES)


class Tinies:
    """Builds tiny models by the name of their case."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, case: str) -> Any:
        config, settings = _parity.CASES[case]
        return self._make(config, **{**_parity.SMALL, **settings})

    def write(self, model: Model, path: Path) -> Path:
        """Write a model as a GGUF in float32."""
        return Path(write_f32(model, path))


@pytest.fixture
def tiny(build: Any) -> Tinies:
    """Return the builder."""
    return Tinies(build)


@pytest.fixture
def ids() -> Tensor:
    """Return two texts of 80 tokens: longer than the windows, and than the shorter original context."""
    return torch.from_numpy(np.random.default_rng(7).integers(0, VOCABULARY, (2, 80)))


class Run:
    """Runs texts through a whole decoder."""

    def __call__(self, decoder: Decoder, ids: Tensor, observe: Observer | None = None) -> Tensor:
        hidden = decoder.embed(ids)
        for layer in range(decoder.layers):
            hidden = decoder.block(layer).forward(hidden, observe)
        return decoder.logits(hidden, observe)

    def theirs(self, source: Any, ids: Tensor) -> Tensor:
        """Return the logits of transformers, for tokens that both know."""
        with torch.no_grad():
            logits: Tensor = source(ids).logits
        return logits.float()


@pytest.fixture
def run() -> Run:
    """Return the runner."""
    return Run()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference in units of the root mean square."""
    shared = min(ours.shape[-1], theirs.shape[-1])
    ours, theirs = ours[..., :shared], theirs[..., :shared]
    return float((ours - theirs).abs().max() / theirs.square().mean().sqrt())


@pytest.fixture
def apart() -> Any:
    """Return `difference`."""
    return difference

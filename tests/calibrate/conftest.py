"""Tiny checkpoints of `tests/models`, and going through them with a visitor that keeps what it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from tests.neighbours import neighbour

from tersor.calibrate.sequences import Sequences
from tersor.calibrate.stream import Input, Needs, Setting, run_blocks
from tersor.decoder import Block, Decoder
from tersor.models import Model, load

if TYPE_CHECKING:
    from torch import Tensor


_models = neighbour("models/conftest", "calibrate")
plain_tokenizer, build = _models.plain_tokenizer, _models.build
VOCABULARY: int = _models.VOCABULARY

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("LlamaConfig", {}),
    "experts": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
}


@dataclass(frozen=True)
class Small:
    """A tiny model: the source in transformers, its folder, and what tersor loads of it."""

    folder: Path
    source: Any
    model: Model


@pytest.fixture(params=KINDS)
def small(request: pytest.FixtureRequest, build: Any) -> Small:
    """A dense model and one with experts."""
    return _made(build, request.param)


@pytest.fixture
def dense(build: Any) -> Small:
    """The dense one."""
    return _made(build, "dense")


@pytest.fixture
def experts(build: Any) -> Small:
    """The one with experts."""
    return _made(build, "experts")


def _made(build: Any, kind: str) -> Small:
    config, settings = KINDS[kind]
    tiny = build(config, **SHAPE, **settings)
    return Small(tiny.folder, tiny.source, load(tiny.folder))


def some_sequences(count: int = 5, length: int = 12) -> Sequences:
    """Random ids."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (count, length))
    return Sequences(ids, "random", "0" * 64)


@pytest.fixture
def sequences() -> Sequences:
    """Five sequences of twelve random tokens."""
    return some_sequences()


Change: TypeAlias = "Callable[[str, Tensor], Tensor]"


def shrunk(name: str, weight: Tensor) -> Tensor:
    """Another weight that a test can also make in the source, whatever the order of its rows is there."""
    del name
    return weight * 0.75


@dataclass
class Notebook:
    """A visitor that turns every matrix that it is shown into `change` of it, and keeps what it saw."""

    wants: Needs = field(default_factory=lambda: Needs(hessian=True, cross=True))
    change: Change = shrunk
    already: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    seen: dict[int, dict[tuple[tuple[str, ...], int | None], Input]] = field(default_factory=dict)
    became: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    calls: list[tuple[str, int]] = field(default_factory=list)

    def needs(self, name: str) -> Needs:
        del name
        return self.wants

    def finished(self, layer: int) -> Mapping[str, Tensor] | None:
        return self.already.get(layer)

    def visit(self, layer: int, weights: Mapping[str, Tensor], inputs: list[Input]) -> Mapping[str, Tensor]:
        self.calls.append(("visit", layer))
        self.seen.setdefault(layer, {}).update({(one.names, one.expert): one for one in inputs})
        names = {name for one in inputs for name in one.names if name in weights}
        made = {name: self.change(name, weights[name]) for name in sorted(names)}
        self.became.setdefault(layer, {}).update(made)
        return made

    def finish(self, layer: int) -> None:
        self.calls.append(("finish", layer))

    def passed(self, block: Block, became: Mapping[str, Tensor]) -> None:
        self.calls.append(("passed", block.layer))
        for name, values in became.items():
            assert values is not block.weights[name], "the block must still have its own weights"


Gather: TypeAlias = Callable[..., Notebook]


@pytest.fixture
def gather() -> Gather:
    """A function that goes through a model and returns the notebook."""

    def go(model: Model, sequences: Sequences, notebook: Notebook | None = None, **setting: Any) -> Notebook:
        notebook = notebook or Notebook()
        run_blocks(Decoder(model), sequences, notebook, Setting(**{"cross": True, "chunk": 2, **setting}))
        return notebook

    return go

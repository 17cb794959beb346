"""A small model held in memory: what the pipeline sees of any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.metadata import MetadataEntry
from tersor.models.model import Model, ModelTensor, kind_of, layer_of, needs_f32


@dataclass(frozen=True, eq=False)
class Held:
    """Rows of an array, and how often they were asked for."""

    values: Float32
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> Float32:
        self.reads.append((start, stop))
        return self.values.reshape(-1, self.values.shape[-1])[start:stop].copy()


def held_tensor(name: str, values: Float32) -> ModelTensor:
    shape = values.shape
    return ModelTensor(name, shape, kind_of(name), layer_of(name), (name,), "F32", needs_f32(name, shape), Held(values))


def held_model(arrays: Mapping[str, Float32], files: tuple[Path, ...]) -> Model:
    keys = {"block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 4}
    metadata = {f"llama.{key}": MetadataEntry(value, "u32") for key, value in keys.items()}
    tensors = tuple(held_tensor(name, values) for name, values in arrays.items())
    return Model("tiny", "llama", {}, metadata, tensors, files)


def arrays(hidden: int = 256, ff: int = 512) -> dict[str, Float32]:
    generator = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (40, hidden)}
    for layer in range(2):
        for kind in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up"):
            shapes[f"blk.{layer}.{kind}.weight"] = (12, hidden)
        shapes[f"blk.{layer}.ffn_down.weight"] = (12, ff)
        shapes[f"blk.{layer}.attn_norm.weight"] = (hidden,)
    shapes["output.weight"] = (40, hidden)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


MakeModel = Callable[..., Model]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A function that makes the model; its "weight file" is a file of some bytes, so that there is one to hash."""

    def make(changes: Mapping[str, Float32] | None = None, *, hidden: int = 256, ff: int = 512) -> Model:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "model.safetensors").write_bytes(b"weights" * 9000)
        model = held_model({**arrays(hidden, ff), **(changes or {})}, (source / "model.safetensors",))
        return dataclasses.replace(model)

    return make

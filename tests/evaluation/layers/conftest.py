"""Models held in memory for comparing weights; the tiny Llama of `checks` for running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.metadata import MetadataEntry
from tersor.formats import FORMATS
from tersor.models.model import Model, ModelTensor, kind_of, layer_of, needs_f32

from ..checks.conftest import checkpoint, make_gguf, source

__all__ = ["checkpoint", "make_gguf", "source"]

Edit = Callable[[Float32], Float32]
HEADS, KEY_HEADS = 8, 4


@dataclass(frozen=True, eq=False)
class Held:
    values: Float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> Float32:
        return self.values.reshape(-1, self.values.shape[-1])[start:stop].copy()


def held(arrays: Mapping[str, Float32], kind: str = "F32") -> Model:
    keys = {"attention.head_count": HEADS, "attention.head_count_kv": KEY_HEADS}
    tensors = tuple(
        ModelTensor(name, v.shape, kind_of(name), layer_of(name), (name,), kind, needs_f32(name, v.shape), Held(v))
        for name, v in arrays.items()
    )
    return Model("held", "llama", {}, {f"llama.{k}": MetadataEntry(v, "u32") for k, v in keys.items()}, tensors, ())


def heavy(rows: int, columns: int, seed: int = 0) -> Float32:
    """Weights with outliers, as trained ones have them: Student's t with 3 degrees of freedom, rows of many sizes."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(generator.normal(0, 0.5, (rows, 1)))
    return (generator.standard_t(3, (rows, columns)) * sizes).astype(np.float32)


def rounded(values: Float32, name: str, **options: object) -> Float32:
    form = FORMATS[name]
    return form.decode(form.encode(values, **options), values.shape[-1])  # type: ignore[arg-type]  # options of encode

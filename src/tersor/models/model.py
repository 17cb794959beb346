"""A model as every later stage sees it: GGUF names and metadata, and weights read when asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tersor.core.arrays import Float32
from tersor.core.errors import MissingError, ShapeError
from tersor.core.metadata import MetadataEntry
from tersor.files.checkpoint import weight_files
from tersor.files.hashing import sha256, written_name
from tersor.models.tokenizers import GgufTokenizer
from tersor.models.transforms import Rows, flat

__all__ = ["WEIGHTS", "Model", "ModelTensor", "kind_of", "layer_of", "needs_f32"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""How the names of files with a checkpoint's weights end."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
_NEVER_ROUNDED = re.compile(
    r"altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight|attn_rel_b\.weight"
    r"|indexer\.[kq]_proj\.weight|ffn_gate_tid2eid\.weight|_norm\.weight|^token_types\.weight|(^|\.)position_embd"
    r"|time_mix_(first|[wva][012]|g[12]|decay_w[12]|lerp_fused)\.weight"
)
"""Matrices that llama-quantize leaves alone, of whatever architecture: llama.cpp aborts on some that are rounded.

Source: tensor_allows_quantization of llama.cpp's src/llama-quant.cpp.
"""


def kind_of(name: str) -> str:
    """Return what a tensor is, from its GGUF name: the name without block and suffix; all norms and biases are alike.

    >>> kind_of("blk.3.attn_q.weight"), kind_of("blk.3.attn_q_norm.weight"), kind_of("blk.3.attn_q.bias")
    ('attn_q', 'norm', 'bias')
    """
    stem, _, suffix = _BLOCK.sub("", name).rpartition(".")
    if suffix == "bias":
        return "bias"
    return "norm" if stem.endswith("_norm") else stem or name


def layer_of(name: str) -> int | None:
    """Return the block number in a GGUF tensor name, or None."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def needs_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether llama.cpp keeps the tensor in float32: vectors, norms, biases, routers, rope factors, and matrices
    of a few architectures that are small, or that its operators take in no other type.
    """
    is_kept = kind_of(name) in ("norm", "bias", "ffn_gate_inp") or _NEVER_ROUNDED.search(name) is not None
    return len(shape) == 1 or is_kept


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """One tensor of the GGUF to be: `shape` in numpy order, `sources` the checkpoint's names for what it is made of."""

    name: str
    shape: tuple[int, ...]
    kind: str
    layer: int | None
    sources: tuple[str, ...]
    source_dtype: str
    must_be_f32: bool
    values: Rows = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows of the tensor flattened to two dimensions."""
        return flat(self.shape)[0]

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.shape[-1]

    def read(self, start: int, stop: int) -> Float32:
        """Return rows `start` to `stop` of [rows, columns] as llama.cpp wants them; only their sources are read."""
        if not 0 <= start <= stop <= self.rows:
            raise ShapeError(f"{self.name} {self.shape}: rows {start} to {stop} asked for, it has {self.rows}")
        return self.values.read(start, stop)


@dataclass(frozen=True)
class Model:
    """A model that is loaded lazily.

    name           of the folder, file or hub id
    architecture   as llama.cpp calls it
    config         the checkpoint's config.json; the metadata of a GGUF
    metadata       key → typed value: the `{architecture}.*` keys; for a GGUF all its keys, tokenizer included
    tensors        in file order: embeddings, blocks, output
    files          everything that was or will be read
    notes          what differs from the source, for the Card
    """

    name: str
    architecture: str
    config: Mapping[str, object]
    metadata: dict[str, MetadataEntry]
    tensors: tuple[ModelTensor, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    open_tokenizer: Callable[[], GgufTokenizer | None] = field(default=lambda: None, repr=False)

    @property
    def folder(self) -> Path | None:
        """The folder of its checkpoint; None for a GGUF."""
        return next((file.parent for file in self.files if file.name == "config.json"), None)

    @property
    def weights(self) -> tuple[Path, ...]:
        """Those of its files that hold weights."""
        return tuple(file for file in self.files if file.suffix in (*WEIGHTS, ".gguf"))

    @property
    def is_its_folder(self) -> bool:
        """Whether it is what one finds who is given its folder alone, and not a file that was named."""
        if self.folder is None:
            return False
        try:
            found, *_ = weight_files(self.folder)
        except MissingError:
            return False  # several, and nothing says which
        return {file.name for file in found} == {file.name for file in self.weights}

    @cached_property
    def tokenizer(self) -> GgufTokenizer | None:
        """The tokenizer, read on first use; None for a GGUF, whose metadata carries it; UnsupportedError by name."""
        return self.open_tokenizer()

    def hashes(self) -> dict[str, str]:
        """Return file name → SHA-256 in hexadecimal, of every file."""
        return {written_name(path.name): sha256(path) for path in self.files}

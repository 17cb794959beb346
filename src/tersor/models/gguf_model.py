"""A Model from a GGUF: its tensors decoded when read, its metadata passed on as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, UnsupportedError
from tersor.core.format import Format
from tersor.files.gguf import BLOCKS, GgufFile, GgufTensor
from tersor.files.hashing import written_name
from tersor.formats import FORMATS
from tersor.models.model import Model, ModelTensor, kind_of, layer_of, needs_f32

__all__ = ["from_gguf"]

_REWRITTEN = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")
"""Keys that whoever writes the next file sets anew."""
_PLAIN = ("F32", "F16", "BF16", "F64")


def from_gguf(path: Path) -> Model:
    """Return the model in a GGUF, whole or split; UnsupportedError for adapters, projectors and importance files."""
    file = GgufFile(path)
    architecture, kind = file.metadata.get("general.architecture"), file.metadata.get("general.type", "model")
    if not isinstance(architecture, str):
        file.close()
        raise FormatError(f"{path}: general.architecture is missing; this is not a model")
    if kind != "model":
        file.close()
        raise UnsupportedError(f"{path}: a GGUF of type {kind!r:.40}; only models can be loaded")
    name = file.metadata.get("general.name")
    tensors = tuple(_model_tensor(file, tensor) for tensor in sorted(file.tensors.values(), key=_place))
    quantized = sorted({tensor.source_dtype for tensor in tensors if tensor.source_dtype not in _PLAIN})
    return Model(
        name=name if isinstance(name, str) and name else written_name(path.stem),
        architecture=architecture,
        config=file.metadata,
        metadata={key: entry for key, entry in file.entries.items() if key not in _REWRITTEN},
        tensors=tensors,
        files=tuple(file.paths),
        notes=(f"the source is quantized already ({', '.join(quantized)}): its losses stay",) if quantized else (),
    )


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A tensor of a GGUF as numbers."""

    file: GgufFile
    tensor: GgufTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, in numpy order."""
        return self.tensor.shape

    def read(self, start: int, stop: int) -> Float32:
        """Return the decoded rows."""
        data = self.file.read_bytes(self.tensor.name, start, stop)
        label, _, _ = BLOCKS[self.tensor.ggml_type]
        form = _formats_by_type().get(self.tensor.ggml_type)
        if form is not None:
            return form.decode(data, self.tensor.shape[-1])
        try:
            values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(self.tensor.ggml_type))
        except NotImplementedError as error:
            raise UnsupportedError(f"{self.tensor.name} is stored as {label}, which cannot be decoded") from error
        return np.ascontiguousarray(values, dtype=np.float32)


def _formats_by_type() -> dict[int, Format]:
    return {form.ggml_type: form for form in FORMATS.values() if form.ggml_type is not None}


def _model_tensor(file: GgufFile, tensor: GgufTensor) -> ModelTensor:
    name, shape = tensor.name, tensor.shape
    label, _, _ = BLOCKS[tensor.ggml_type]
    values = _Decoded(file, tensor)
    return ModelTensor(name, shape, kind_of(name), layer_of(name), (name,), label, needs_f32(name, shape), values)


def _place(tensor: GgufTensor) -> tuple[int, int]:
    """Order tensors: embeddings and other single ones, blocks by number, output norm, output."""
    layer = layer_of(tensor.name)
    if layer is not None:
        return 1, layer
    if tensor.name.startswith("output"):
        return (2, 0) if tensor.name.startswith("output_norm.") else (3, 0)
    return 0, 0

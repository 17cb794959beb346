"""The shape of a model from its config.json alone, where no weights lie beside it or nobody wants to wait for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError
from tersor.core.metadata import MetadataEntry
from tersor.files.hashing import written_name
from tersor.models.architectures import TensorRule
from tersor.models.checkpoint_model import Description, read_description
from tersor.models.model import Model, ModelTensor, kind_of, layer_of, needs_f32

__all__ = ["outline"]

MOST_LAYERS = 1 << 14
"""Nothing but this count says how many tensors there are."""
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True, slots=True)
class _Absent:
    """A tensor of which only the shape is known."""

    shape: tuple[int, ...]
    place: str

    def read(self, start: int, stop: int) -> Float32:
        """Refuse: there is nothing to read."""
        raise MissingError(f"{self.place}: rows {start} to {stop} asked for, but only the config.json was read")


def outline(folder: Path) -> Model:
    """Return the model that the config.json of `folder` describes: names and shapes, no weights, no tokenizer.

    Biases that the architecture may have or not are left out. Errors are those of loading a checkpoint.
    """
    described = read_description(folder)
    if described.found.layers > MOST_LAYERS:
        raise FormatError(f"{folder / 'config.json'}: {described.found.layers} layers are more than any model has")
    tensors = tuple(_tensors(described, folder))
    axes, name = described.found.axes, described.row.name
    return Model(
        name=written_name(folder.resolve().name),
        architecture=name,
        config=described.values,
        metadata=described.found.metadata | {f"{name}.vocab_size": MetadataEntry(axes["vocabulary"], "u32")},
        tensors=tensors,
        files=(folder / "config.json",),
        notes=described.found.notes,
    )


def _tensors(described: Description, folder: Path) -> Iterator[ModelTensor]:
    """Yield what the rules of the row come to: before, in and after the blocks; of several for a name the first."""
    named = described.values.get("dtype") or described.values.get("torch_dtype")
    dtype = _DTYPES.get(str(named), "F32")  # what transformers takes where a config names none
    rules: dict[str, TensorRule] = {}
    for rule in described.row.rules:
        if rule.required:
            rules.setdefault(rule.name, rule)
    if described.found.tied:
        rules.pop("output.weight", None)
    blocks = [rule for rule in rules.values() if "{i}" in rule.name]
    for rule in rules.values():
        layers = range(described.found.layers) if rule in blocks[:1] else () if rule in blocks else (None,)
        for layer in layers:
            for each in blocks if layer is not None else (rule,):
                name = each.name.format(i=layer)
                shape = tuple(described.found.axes[axis] for axis in each.shape)
                values = _Absent(shape, str(folder))
                must = needs_f32(name, shape)
                yield ModelTensor(name, shape, kind_of(name), layer_of(name), (each.source,), dtype, must, values)

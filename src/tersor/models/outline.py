"""The shape of a model from its config.json alone, where no weights lie beside it or nobody wants to wait for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError
from tersor.core.metadata import MetadataEntry
from tersor.files.checkpoint import weight_files
from tersor.files.hashing import written_name
from tersor.models.architectures import TensorRule
from tersor.models.checkpoint_model import Description, read_description
from tersor.models.hub import fetch, hub_id
from tersor.models.load import load
from tersor.models.model import Model, ModelTensor, kind_of, layer_of, needs_f32
from tersor.models.tokenizers import load_tokenizer

__all__ = ["look", "outline"]

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


def look(source: str | Path, *, ignore_config: Collection[str] = ()) -> Model:
    """Return the model at `source` as `load` does, but of a hub id without weights that are not in the cache, and of a
    folder without weights by its config.json alone: enough for shapes, sizes and plans.
    """
    path = Path(source).expanduser()
    if named := hub_id(source):
        folder = fetch(named, weights=False)
        if folder.is_file():
            return load(folder)
        found = look(folder, ignore_config=ignore_config)
        return dataclasses.replace(found, name=named.partition("@")[0].rpartition("/")[2])
    if path.is_dir() and (path / "config.json").is_file():
        try:
            weight_files(path)
        except MissingError:
            return outline(path, ignore_config)
    return load(path if path.exists() else source, ignore_config=ignore_config)


def outline(folder: Path, ignore_config: Collection[str] = ()) -> Model:
    """Return the model that the config.json of `folder` describes: names and shapes, no weights.

    Biases that the architecture may have or not are left out. Errors are those of loading a checkpoint.
    """
    described = read_description(folder, ignore_config)
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
        notes=(*described.found.notes, "by config.json alone: biases that it does not tell of are left out"),
        open_tokenizer=partial(load_tokenizer, folder, axes["vocabulary"], architecture=name),
    )


def _tensors(described: Description, folder: Path) -> Iterator[ModelTensor]:
    """Yield what the rules of the row come to: before, in and after the blocks; of several for a name the first."""
    named = described.values.get("dtype") or described.values.get("torch_dtype")
    dtype = _DTYPES.get(str(named), "F32")  # what transformers takes where a config names none
    coded = _coded(described) or dtype
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
                stored = coded if layer is not None and not must else dtype
                yield ModelTensor(name, shape, kind_of(name), layer_of(name), (each.source,), stored, must, values)


def _coded(described: Description) -> str:
    """Return the number format of a quantized checkpoint's matrices; "" where there is none, "quantized" for any."""
    if described.settings is None:
        return ""
    values = described.values["quantization_config"]
    width = values.get("group_size") if isinstance(values, dict) else None
    if described.settings.method not in ("gptq", "awq") or not isinstance(width, int):
        return "quantized"
    groups = f"g{width}" if width > 0 else "channel"
    return f"int{described.settings.bits}-{groups}-asym-f16"  # zero points are always stored

"""What is inside a model file or folder: metadata, tensors, formats, tokenizer; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tersor.core.errors import TersorError
from tersor.core.metadata import MetadataValue
from tersor.files.gguf import BLOCKS, GgufFile
from tersor.models import Model
from tersor.models.outline import look
from tersor.models.tokenizers.gguf_tokenizer import SPECIAL_KEYS
from tersor.pipeline.steps.stored import stored_bytes

__all__ = ["FormatTotal", "InspectedTensor", "Inspection", "TokenizerSummary", "inspect"]

LONG = 16
"""Items of an array beyond which only its beginning is shown."""
SHOWN_ITEMS, SHOWN_CHARACTERS = 4, 200


@dataclass(frozen=True, slots=True)
class InspectedTensor:
    """One tensor: `name` in the terms of a GGUF, `shape` in NumPy order, `nbytes` as stored, `sources` its origins."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    sources: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight."""
        return self.nbytes * 8 / max(self.weights, 1)


@dataclass(frozen=True, slots=True)
class FormatTotal:
    """All tensors of one format."""

    format: str
    tensors: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight."""
        return self.nbytes * 8 / max(self.weights, 1)


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """`model` and `pre` as llama.cpp calls them, `special` name → text; `problem` is why it cannot be used, or ""."""

    model: str
    pre: str
    size: int
    special: Mapping[str, str]
    has_chat_template: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found.

    container  "GGUF" or "checkpoint"; tensors of a checkpoint carry the names and shapes they have in a GGUF
    files      name → bytes
    metadata   key → value; of long arrays the length and the beginning, as text
    """

    name: str
    container: str
    architecture: str
    files: Mapping[str, int]
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[InspectedTensor, ...]
    tokenizer: TokenizerSummary | None
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Parameters."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without headers and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def totals(self) -> tuple[FormatTotal, ...]:
        """One row a format, the largest share first."""
        groups: dict[str, list[InspectedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.format, []).append(tensor)
        rows = [
            FormatTotal(name, len(group), sum(t.weights for t in group), sum(t.nbytes for t in group))
            for name, group in groups.items()
        ]
        return tuple(sorted(rows, key=lambda row: (-row.nbytes, row.format)))

    def to_object(self) -> dict[str, object]:
        """Return everything as plain values, ready for JSON."""
        derived = {"weights": self.weights, "bytes": self.nbytes}
        bits = {"bits_per_weight": self.nbytes * 8 / max(self.weights, 1)}
        totals = [{**asdict(row), "bits_per_weight": row.bits_per_weight} for row in self.totals]
        tensors = [{**asdict(row), "bits_per_weight": row.bits_per_weight} for row in self.tensors]
        return {**asdict(self), **derived, **bits, "tensors": tensors, "totals": totals}


def inspect(source: str | Path) -> Inspection:
    """Return what is in `source`: a GGUF (any part of a split one), a checkpoint, or a hub id.

    Raises FormatError for broken files, MissingError for absent ones, UnsupportedError for unknown architectures.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _inspect_gguf(path)
    model = look(source)
    if any(file.suffix == ".gguf" for file in model.files):
        return _inspect_gguf(model.files[0])
    tensors = tuple(
        InspectedTensor(t.name, t.shape, t.source_dtype, round(nbytes), t.sources)
        for t, nbytes in zip(model.tensors, stored_bytes(model), strict=True)
    )
    metadata = {key: entry.value for key, entry in model.metadata.items()}
    return Inspection(
        name=model.name,
        container="checkpoint",
        architecture=model.architecture,
        files={file.name: file.stat().st_size for file in model.files},
        metadata=_shortened(metadata),
        tensors=tensors,
        tokenizer=_tokenizer_of_model(model),
        notes=model.notes,
    )


def _inspect_gguf(path: Path) -> Inspection:
    with GgufFile(path) as file:
        tensors = tuple(
            InspectedTensor(tensor.name, tensor.shape, BLOCKS[tensor.ggml_type][0].lower(), tensor.nbytes)
            for tensor in file.tensors.values()
        )
        return Inspection(
            name=str(file.metadata.get("general.name", path.stem)),
            container="GGUF",
            architecture=str(file.metadata.get("general.architecture", "none")),
            files={part.name: part.stat().st_size for part in file.paths},
            metadata=_shortened(file.metadata),
            tensors=tensors,
            tokenizer=_tokenizer_of_metadata(file.metadata),
            notes=(),
        )


def _tokenizer_of_model(model: Model) -> TokenizerSummary | None:
    try:
        tokenizer = model.tokenizer
    except TersorError as error:
        return TokenizerSummary("unknown", "", 0, {}, False, str(error))
    return None if tokenizer is None else _tokenizer_of_metadata({k: e.value for k, e in tokenizer.metadata().items()})


def _tokenizer_of_metadata(metadata: Mapping[str, MetadataValue]) -> TokenizerSummary | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return None
    special = {}
    for name, key in SPECIAL_KEYS.items():
        number = metadata.get(key)
        if isinstance(number, int):
            special[name] = str(tokens[number]) if 0 <= number < len(tokens) else f"id {number}, which does not exist"
    return TokenizerSummary(
        model=str(metadata.get("tokenizer.ggml.model", "missing")),
        pre=str(metadata.get("tokenizer.ggml.pre", "")),
        size=len(tokens),
        special=special,
        has_chat_template="tokenizer.chat_template" in metadata,
    )


def _shortened(metadata: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    return {key: _short(value) for key, value in metadata.items()}


def _short(value: MetadataValue) -> MetadataValue:
    if isinstance(value, list) and len(value) > LONG:
        return f"{len(value):,} items: {', '.join(repr(item)[:40] for item in value[:SHOWN_ITEMS])}, …"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{len(value):,} characters: {value[:SHOWN_CHARACTERS]}…"
    return value

"""A Model from a Hugging Face checkpoint: a table row applied to config.json and the weight files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tersor.core.errors import FormatError, MissingError, ShapeError, UnsupportedError
from tersor.core.metadata import MetadataEntry
from tersor.files.checkpoint import Checkpoint, read_json, weight_files
from tersor.files.hashing import written_name
from tersor.files.safetensors import TensorInfo
from tersor.formats.hf.settings import Settings, read_settings
from tersor.models.architectures import Architecture, TensorRule, find
from tersor.models.config import Config
from tersor.models.hyperparameters import Hyperparameters, read_hyperparameters
from tersor.models.model import Model, ModelTensor, kind_of, layer_of, needs_f32
from tersor.models.quantized_checkpoint import QuantizedCheckpoint
from tersor.models.rope import factor_tensors
from tersor.models.tokenizers import load_tokenizer
from tersor.models.transforms import Affine, Constant, Half, HeadsInterleaved, Leading, Rows, Source, Stacked

__all__ = ["Description", "from_checkpoint", "read_description"]

_MAX_TOKENIZER_BYTES = 128 * 2**20
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "tekken.json",
)  # fmt: skip
_IDLE_TENSOR = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|self_attn\.(masked_)?bias)$")
"""Buffers that old versions saved although they are computed."""


def from_checkpoint(folder: Path, weights: Path | None = None, *, ignore_config: Collection[str] = ()) -> Model:
    """Return the model in `folder`; `weights` names the one file to take where there are several.

    Raises MissingError for absent files, UnsupportedError for what no table row covers, FormatError for broken files.
    """
    described = read_description(folder, ignore_config)
    values, row, settings, found = described.values, described.row, described.settings, described.found
    path = folder / "config.json"
    paths, index, further = ([weights], None, []) if weights else weight_files(folder)
    checkpoint = Checkpoint(paths, index)
    try:
        source = QuantizedCheckpoint(checkpoint, settings, str(folder)) if settings else checkpoint
        assembly = _Assembly(source, row, found, folder)
        tensors = tuple(assembly.tensors())
        notes = found.notes + assembly.check_leftovers()
        if settings:
            notes += (f"the source is quantized already ({settings.method}): its losses stay",)
    except BaseException:
        checkpoint.close()
        raise
    metadata = found.metadata | {f"{row.name}.vocab_size": MetadataEntry(tensors[0].rows, "u32")}
    side = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return Model(
        name=written_name(folder.resolve().name),
        architecture=row.name,
        config=values,
        metadata=metadata,
        tensors=tensors,
        files=(*checkpoint.paths, *further, path, *side),
        notes=notes,
        open_tokenizer=partial(load_tokenizer, folder, tensors[0].rows, architecture=row.name),
    )


@dataclass(frozen=True, slots=True)
class Description:
    """What a config.json says: its values, the row of its architecture, how it is quantized, what its sizes come to."""

    values: dict[str, object]
    row: Architecture
    settings: Settings | None
    found: Hyperparameters


def read_description(folder: Path, ignore_config: Collection[str] = ()) -> Description:
    """Read the config.json of `folder`; errors are those of `from_checkpoint`."""
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"{folder}: no config.json; a model folder holds it beside the weights")
    values = read_json(path)
    row = find(values.get("architectures"), values.get("model_type"), str(path))
    inner = values.pop("text_config", None)
    if isinstance(inner, dict):
        values |= inner
    quantization = values.get("quantization_config")
    settings = read_settings(quantization, str(path)) if quantization else None
    plain = {key: value for key, value in values.items() if key != "quantization_config"}
    found = read_hyperparameters(Config(plain, row.defaults, str(path)), row, ignore_config)
    return Description(values, row, settings, found)


class _Assembly:
    """Matches the rules of a row against the tensors of a checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint | QuantizedCheckpoint, row: Architecture, found: Hyperparameters, folder: Path
    ) -> None:
        self.checkpoint, self.row, self.found, self.folder = checkpoint, row, found, folder
        self.infos: dict[str, TensorInfo] = {}
        for name, info in checkpoint.tensors.items():
            short = self._short(name)
            if short in self.infos:
                raise FormatError(f"{folder}: {name!r} and {self.infos[short].name!r} are the same tensor")
            self.infos[short] = info
        if found.tied and "lm_head.weight" in self.infos:  # one matrix under two names: saved under either, or both
            self.infos.setdefault(row.rules[0].source, self.infos.pop("lm_head.weight"))
        self.used: set[str] = set()
        self.axes = found.axes

    def tensors(self) -> Iterator[ModelTensor]:
        """Yield the tensors in file order: embeddings, rope factors, blocks, output."""
        if not self.found.tied and all(rule.name != "output.weight" for rule in self.row.rules):
            raise UnsupportedError(f"{self.folder}: tie_word_embeddings is false; llama.cpp's {self.row.name} ties")
        groups: list[list[list[TensorRule]]] = [[], [], []]  # before, in and after the blocks
        for rule in self.row.rules:
            where = 1 if "{i}" in rule.name else 2 if groups[1] else 0
            for same in groups[where]:
                if same[0].name == rule.name:
                    same.append(rule)
                    break
            else:
                groups[where].append([rule])
        yield from self._matched(groups[0], None)
        for name, values in factor_tensors(self.found.rope).items():
            yield _tensor(name, Constant(values), (), "computed")
        for layer in range(self.found.layers):
            yield from self._matched(groups[1], layer)
        yield from self._matched(groups[2], None)

    def check_leftovers(self) -> tuple[str, ...]:
        """Return notes on tensors left out on purpose; UnsupportedError names the first that nothing took."""
        left = [name for name in self.infos if name not in self.used and not _IDLE_TENSOR.search(name)]
        towers = [name for name in left if name.startswith(self.row.left_out)] if self.row.left_out else []
        odd = [name for name in left if name not in towers]
        if odd:
            raise UnsupportedError(
                f"{self.folder}: {len(odd)} tensors have no place in llama.cpp's {self.row.name} with "
                f"{self.found.layers} layers, the first is {odd[0]!r:.160}"
            )
        return (f"{len(towers)} tensors that are not text were left out, the first {towers[0]!r}",) if towers else ()

    def _short(self, name: str) -> str:
        for beginning, stands in self.row.prefixes:
            if name.startswith(beginning) and not name.startswith(self.row.left_out):
                return stands + name.removeprefix(beginning)
        return name

    def _matched(self, groups: list[list[TensorRule]], layer: int | None) -> Iterator[ModelTensor]:
        for rules in groups:
            if rules[0].name == "output.weight" and self.found.tied:
                continue
            rule = next((rule for rule in rules if self._sources(rule, layer)), None)
            if rule is not None:
                yield self._made(rule, layer)
            elif rules[0].required:
                missing = rules[0].source.format(i=layer, e=0)
                hint = "; tie_word_embeddings is false" if rules[0].name == "output.weight" else ""
                raise FormatError(f"{self.folder}: the tensor {missing} is missing{hint}")

    def _sources(self, rule: TensorRule, layer: int | None) -> list[str]:
        """Return the names that a rule takes, or none when one of them is absent."""
        if "{e}" not in rule.source:
            name = rule.source.format(i=layer)
            return [name] if name in self.infos else []
        names = []
        for expert in range(self.axes["experts"]):
            names.append(rule.source.format(i=layer, e=expert))
            if names[-1] not in self.infos:
                return []
        return names

    def _made(self, rule: TensorRule, layer: int | None) -> ModelTensor:
        names = self._sources(rule, layer)
        shape = tuple(self.axes[axis] for axis in rule.shape)
        stored = shape[1:] if "{e}" in rule.source else shape
        if rule.change in ("first_half", "second_half"):
            stored = (shape[0], 2 * shape[1], shape[2])
        parts = tuple(self._source(name, stored) for name in names)
        values = self._changed(Stacked(parts) if "{e}" in rule.source else parts[0], rule)
        originals = tuple(self.infos[name].name for name in names)
        return _tensor(rule.name.format(i=layer), values, originals, self.infos[names[0]].dtype)

    def _source(self, name: str, shape: tuple[int, ...]) -> Source:
        info = self.infos[name]
        if info.shape != shape:
            raise ShapeError(f"{self.folder}: {info.name} is {info.shape}; config.json makes it {shape}")
        self.used.add(name)
        return Source(info.name, info.shape, info.dtype, self.checkpoint.read)

    def _changed(self, values: Rows, rule: TensorRule) -> Rows:
        match rule.change:
            case "heads_q" | "heads_k":
                return HeadsInterleaved(values, self.found.heads if rule.change == "heads_q" else self.found.key_heads)
            case "norm_plus_1":
                return Affine(values, shift=1.0)
            case "query_scale" | "query_norm":
                return Affine(values, shift=float(rule.change == "query_norm"), factor=self.found.query_factor)
            case "first_half" | "second_half":
                return Half(values, 0 if rule.change == "first_half" else 1)
            case "tokens":
                tokens = _token_count(self.folder)
                return Leading(values, tokens) if tokens and tokens < values.shape[0] else values
        return values


def _tensor(name: str, values: Rows, sources: tuple[str, ...], dtype: str) -> ModelTensor:
    shape = values.shape
    return ModelTensor(name, shape, kind_of(name), layer_of(name), sources, dtype, needs_f32(name, shape), values)


def _token_count(folder: Path) -> int | None:
    """Return one more than the largest token id in tokenizer.json, or None where there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = read_json(path, _MAX_TOKENIZER_BYTES)
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not isinstance(added, list):
        raise FormatError(f"{path}: model.vocab and added_tokens are needed")
    ids: list[object] = [token.get("id") for token in added if isinstance(token, dict)]
    ids += vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    counted = [value for value in ids if type(value) is int and 0 <= value < 2**31]
    if not counted or len(counted) != len(ids):
        raise FormatError(f"{path}: token ids must be whole numbers")
    return max(counted) + 1

"""Choose the format of every tensor: overrides first, then the mixture, then what its columns allow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tersor.containers.mixture_rules import FILE_TYPES, RULES, FileType, Layers, Role, Rule
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.metadata import MetadataEntry
from tersor.formats import FORMATS

__all__ = [
    "Choice",
    "MixtureTensor",
    "ModelFacts",
    "check_patterns",
    "choose",
    "file_type",
    "fit",
    "is_quantizable",
    "parse_overrides",
    "tensor_format",
]

ROLES: tuple[Role, ...] = ("attn_v", "attn_k", "attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down")


class MixtureTensor(Protocol):
    """What the choice looks at; a ModelTensor has it."""

    @property
    def name(self) -> str:
        """The GGUF name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """NumPy order: columns last."""

    @property
    def must_be_f32(self) -> bool:
        """True for norms, biases, routers and the like."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The numbers of a model that rules ask for; `heads` and `kv_heads` are those of the first layer."""

    architecture: str
    layers: int
    heads: int = 1
    kv_heads: int = 1
    experts: int = 0

    @classmethod
    def from_metadata(cls, architecture: str, metadata: Mapping[str, MetadataEntry]) -> ModelFacts:
        """Read the facts from the `{architecture}.*` keys of a GGUF; absent keys take llama.cpp's defaults."""

        def number(key: str, default: int) -> int:
            entry = metadata.get(f"{architecture}.{key}")
            value = default if entry is None else entry.value
            first = value[0] if isinstance(value, list) else value
            return int(first)

        heads = number("attention.head_count", 1)
        kv_heads = number("attention.head_count_kv", heads)
        return cls(architecture, number("block_count", 0), heads, kv_heads, number("expert_count", 0))

    @property
    def grouped(self) -> bool:
        """At least 4 query heads share a key head."""
        return self.kv_heads > 0 and self.heads // self.kv_heads >= 4

    @property
    def large_grouped(self) -> bool:
        """80 layers with grouped attention: what llama.cpp calls 70B."""
        grouped = self.architecture == "qwen2" or self.heads != self.kv_heads
        return self.layers == 80 and self.architecture in ("llama", "qwen2") and grouped


@dataclass(frozen=True, slots=True)
class Choice:
    """The format of one tensor, why, and which format its columns ruled out ("" where none)."""

    format: str
    reason: str
    wanted: str = ""


@dataclass(frozen=True, slots=True)
class Override:
    """One `PATTERN=FORMAT`: a regular expression searched for in GGUF names."""

    pattern: re.Pattern[str]
    format: str


def file_type(name: str) -> FileType:
    """Return the file type called `name`; SchemeError names near ones."""
    found = FILE_TYPES.get(name.lower())
    if found is not None:
        return found
    if name.lower() in FORMATS:
        raise SchemeError(f"no llama.cpp file type holds {name!r} matrices; those it knows: {', '.join(FILE_TYPES)}")
    near = difflib.get_close_matches(name.lower(), FILE_TYPES, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(FILE_TYPES)}"
    raise SchemeError(f"no file type is called {name!r}; {hint}")


def tensor_format(name: str) -> str:
    """Return `name` in lower case where a GGUF can hold it as a weight format; SchemeError otherwise."""
    known = [key for key, row in FORMATS.items() if "gguf" in row.containers]
    if name.lower() in known:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    raise SchemeError(f"a GGUF cannot hold weights in {name!r}; {hint}")


def parse_overrides(texts: Sequence[str], format_of: Callable[[str], str] = tensor_format) -> tuple[Override, ...]:
    """Parse `PATTERN=FORMAT` texts; the last "=" divides them.

    format_of  the whole name of a format, SchemeError where there is none: those that a GGUF holds unless given

    >>> [(o.pattern.pattern, o.format) for o in parse_overrides(["attn_(k|v)=q8_0"])]
    [('attn_(k|v)', 'q8_0')]
    """
    overrides = []
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise SchemeError(f"{text!r} is not PATTERN=FORMAT, for example 'ffn_down=q6_k'")
        try:
            overrides.append(Override(re.compile(pattern), format_of(name)))
        except re.error as error:
            raise SchemeError(f"{pattern!r} is not a regular expression: {error}") from error
    return tuple(overrides)


def choose(
    name: str,
    tensors: Sequence[MixtureTensor],
    facts: ModelFacts,
    *,
    tensor_formats: Sequence[str] = (),
    output_format: str | None = None,
    embedding_format: str | None = None,
    has_importance: bool = False,
    fallback: bool = True,
) -> dict[str, Choice]:
    """Return the format of every tensor and the reason for it, in the order of `tensors`.

    name              a key of FILE_TYPES
    tensor_formats    "PATTERN=FORMAT": first match wins, before the mixture, and shifts none of its counters
    output_format     for the output matrix, or for the embedding of a tied model
    embedding_format  for the token embedding; wins over output_format in a tied model
    fallback          False: refuse (ShapeError naming every tensor) instead of standing in another format

    Raises SchemeError for an unknown name, format or a pattern that matches no tensor.
    """
    kind = file_type(name)
    overrides = parse_overrides(tensor_formats)
    matrices = [tensor for tensor in tensors if is_quantizable(tensor)]
    check_patterns(overrides, [tensor.name for tensor in matrices])
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    ordered = sorted(matrices, key=lambda tensor: (_layer(tensor.name), tensor.name))
    mixture = _mixture(kind, ordered, facts, tied=tied, has_importance=has_importance)
    choices = {}
    for tensor in tensors:
        if tensor.name not in mixture:
            choices[tensor.name] = Choice("f32", "kept f32: " + _kept_because(tensor))
            continue
        special = _override(tensor.name, overrides, output_format, embedding_format, tied=tied)
        choices[tensor.name] = fit(special or mixture[tensor.name], tensor.shape[-1])
    refused = [f"{key} ({value.reason})" for key, value in choices.items() if value.wanted]
    if refused and not fallback:
        raise ShapeError(
            f"{len(refused)} tensors cannot hold their format, and fallback is off: {'; '.join(refused)}. "
            "Allow the fallback, or give these tensors a format that fits with PATTERN=FORMAT"
        )
    return choices


def is_quantizable(tensor: MixtureTensor) -> bool:
    """Return whether llama.cpp would quantize this tensor: a matrix (or a stack of them) of weights.

    Leading axes of length 1 do not count as axes, as in ggml.
    """
    has_rows = any(size > 1 for size in tensor.shape[:-1])
    return has_rows and tensor.name.endswith("weight") and not tensor.must_be_f32


def fit(choice: Choice, columns: int) -> Choice:
    """Return `choice`, or what stands in for it where its block does not divide `columns`."""
    taken = choice.format
    while not FORMATS[taken].holds(columns):
        taken = FORMATS[taken].fallback or "f16"
    if taken == choice.format:
        return choice
    block = FORMATS[choice.format].block
    reason = f"fallback: {columns} columns do not divide by {block} ({choice.format}, {choice.reason})"
    return Choice(taken, reason, choice.format)


def _mixture(
    kind: FileType, ordered: Sequence[MixtureTensor], facts: ModelFacts, *, tied: bool, has_importance: bool
) -> dict[str, Choice]:
    """Apply the rules to `ordered` (by layer, then name: the order that the counters run in)."""
    if kind.pure:
        how = "default" if FORMATS[kind.default].block == 1 else "pure"
        return {tensor.name: Choice(kind.default, f"{kind.name}: {how}") for tensor in ordered}
    roles = {tensor.name: _role(tensor.name, tied=tied) for tensor in ordered}
    values = sum(role == "attn_v" for role in roles.values())
    rules = [(n, rule) for n, rule in enumerate(RULES, 1) if not rule.file_types or kind.name in rule.file_types]
    seen: dict[Role, int] = {}
    choices = {}
    for tensor in ordered:
        role = roles[tensor.name]
        index, count = seen.get(role, 0), values if role == "attn_v" else facts.layers
        seen[role] = index + 1
        if role == "ffn_down" and facts.experts > 1:
            index = _layer(tensor.name)
        chosen, number = kind.default, 0
        for position, rule in rules:
            is_open = role in rule.roles and (not rule.replaces or chosen in rule.replaces)
            if is_open and _covers(rule.layers, index, count) and _applies(rule, kind, tensor, facts, has_importance):
                chosen, number = rule.format, position
        where = f"rule {number}, {role}" if number else "default"
        choices[tensor.name] = Choice(chosen, f"{kind.name}: {where}")
    return choices


def _applies(rule: Rule, kind: FileType, tensor: MixtureTensor, facts: ModelFacts, has_importance: bool) -> bool:
    """Return whether the model, the shape and the importance are what `rule` asks for."""
    conditions = (
        (rule.grouped, facts.grouped),
        (rule.eight_experts, facts.experts == 8),
        (rule.importance, has_importance),
        (rule.large_grouped, facts.large_grouped),
        (rule.misfit, not FORMATS[kind.default].holds(tensor.shape[-1])),
        (rule.stacked, len(tensor.shape) == 3 and tensor.shape[0] > 1),
    )
    return all(wanted is None or wanted == actual for wanted, actual in conditions)


def _covers(layers: Layers, index: int, count: int) -> bool:
    """Return whether the `index`-th of `count` matrices of a role is among `layers` (integer divisions as in C)."""
    eighth = count // 8
    match layers:
        case "all":
            return True
        case "first 2":
            return index < 2
        case "first 4":
            return index < 4
        case "first sixteenth":
            return index < count // 16
        case "first eighth":
            return index < eighth
        case "more bits":
            return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def _role(name: str, *, tied: bool) -> Role:
    if name == "output.weight":
        return "output"
    if name == "token_embd.weight":
        return "output" if tied else "token_embd"
    if "attn_qkv.weight" in name:
        return "attn_v"
    return next((role for role in ROLES if role in name), "other")


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _override(
    name: str,
    overrides: Sequence[Override],
    output_format: str | None,
    embedding_format: str | None,
    *,
    tied: bool,
) -> Choice | None:
    """Return what the user asked for by name, or None."""
    if name == "token_embd.weight" and embedding_format is not None:
        return Choice(tensor_format(embedding_format), "override: embedding format")
    if name == ("token_embd.weight" if tied else "output.weight") and output_format is not None:
        return Choice(tensor_format(output_format), "override: output format")
    for override in overrides:
        if override.pattern.search(name):
            return Choice(override.format, f"override: {override.pattern.pattern}={override.format}")
    return None


def check_patterns(overrides: Sequence[Override], names: Sequence[str]) -> None:
    """Raise SchemeError for a pattern that matches none of `names`."""
    for override in overrides:
        if not any(override.pattern.search(name) for name in names):
            text = override.pattern.pattern
            near = difflib.get_close_matches(text, sorted({*names, *(_stem(name) for name in names)}), n=3, cutoff=0.5)
            hint = f"near it are {', '.join(near)}" if near else f"names look like {', '.join(names[:3])}"
            raise SchemeError(f"the pattern {text!r} matches no matrix of this model; {hint}")


def _stem(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")


def _kept_because(tensor: MixtureTensor) -> str:
    if "norm" in tensor.name:
        return "norm"
    if tensor.name.endswith("bias"):
        return "bias"
    if "ffn_gate_inp" in tensor.name:
        return "router"
    if "rope" in tensor.name:
        return "rope factors"
    return "not a matrix" if not any(size > 1 for size in tensor.shape[:-1]) else "llama.cpp never rounds it"

"""The plan as a file: YAML that a person reads, edits and commits; `tersor quantize --plan` takes it.

Only `schema` and `tensors` must be there, so that a plan can be written by hand. What a plan says of a tensor is what
`--tensor-format` says: it becomes one of those, by the tensor's whole name. A plan of a net names operators: container
`onnx`, schema 2.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tersor.containers.hf.table import container
from tersor.containers.mixtures import file_type, tensor_format
from tersor.core.errors import FormatError, SchemeError
from tersor.core.quantities import size
from tersor.core.records import read_text, read_yaml
from tersor.files.atomic import atomic_writer
from tersor.formats import get
from tersor.graph.sensitivity.rebuild import FORMATS as NET_FORMATS
from tersor.models.model import Model

__all__ = ["GGUF", "MIX_SCHEMA", "NET_SCHEMA", "ONNX", "PlanFile", "Share"]

MIX_SCHEMA, NET_SCHEMA = "tersor.mix/1", "tersor.mix/2"
"""Of models, and of nets: version 2 adds the container onnx, with `engine` and `activations`. Each plan is written in
the oldest version that has words for it."""
GGUF, ONNX = "gguf", "onnx"
MAX_BYTES = 16 << 20
MAX_DEPTH = 8
TEXTS = ("model", "target", "container", "method", "calibration", "base", "goal")
OF_NETS = ("engine", "activations")
NUMBERS = ("predicted", "measured")
HEAD = """\
# Which format each tensor takes, by tersor plan. Edit it freely, keep it under version control, and then
#   tersor quantize MODEL -o {out} --plan {name} --calibration TEXT
# Behind each tensor: its bytes, and the divergence that rounding it alone would cost, in nats per token.
"""

NET_HEAD = """\
# What each operator of the net becomes, by tersor plan. Edit it freely, keep it under version control, and then
#   tersor quantize NET -o {out} --plan {name} --calibration DATA
# Behind each operator: bytes of its weights, and the divergence that it alone would cost, in nats per item.
"""


@dataclass(frozen=True, slots=True)
class Share:
    """What a tensor adds: bytes, divergence alone, and its share of the divergence of the whole plan."""

    nbytes: int
    kl: float
    share: float


@dataclass(frozen=True)
class PlanFile:
    """A plan.

    formats      GGUF name → format; tensors that are not named take `base`. Of a net: operator → format
    base         a file type, or a format of the container: what the rest takes
    container    what holds it, "" for a GGUF
    engine, activations  of a net: see Recipe of `graph.ptq`, "" where nothing is said
    method       what is to round, "" where nothing is said
    calibration  the text it was made for, in words
    goal         what was asked for, in words
    predicted, measured  figures by name: bytes, bits_per_weight, kl …; empty where there are none
    """

    formats: Mapping[str, str]
    base: str = ""
    model: str = ""
    target: str = ""
    container: str = ""
    method: str = ""
    calibration: str = ""
    goal: str = ""
    engine: str = ""
    activations: str = ""
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.formats:
            raise SchemeError("a plan names no tensor; there is nothing to decide")
        for name, kind in self.formats.items():
            try:
                self._format(kind)
            except SchemeError as error:
                raise SchemeError(f"{name}: {error}") from error
        if self.base and self.where == GGUF:
            file_type(self.base)
        elif self.base:
            self._format(self.base)
        if self.where not in (GGUF, ONNX):
            container(self.where)

    @property
    def where(self) -> str:
        """The container."""
        return self.container or GGUF

    @property
    def example(self) -> str:
        """A name for what is made: a file, or the folder of a checkpoint."""
        return {GGUF: "OUT.gguf", ONNX: "OUT.onnx"}.get(self.where, "OUT")

    @property
    def schema(self) -> str:
        """The oldest version that has words for it."""
        return NET_SCHEMA if self.where == ONNX else MIX_SCHEMA

    def _format(self, kind: str) -> str:
        if self.where == ONNX:
            if kind not in NET_FORMATS:
                raise SchemeError(f"an operator of a net is planned as {', '.join(NET_FORMATS)}, not {kind!r}")
            return kind
        return tensor_format(kind) if self.where == GGUF else get(kind).name

    @property
    def file_type(self) -> str:
        """The file type that the plan's overrides go onto: its base, else the format that most tensors take, pure."""
        if self.base:
            return self.base
        most = Counter(self._format(kind) for kind in self.formats.values()).most_common(1)[0][0]
        if self.where != GGUF:
            return most
        return file_type(most if most in ("f32", "f16", "bf16") else f"{most}_pure").name

    def operator_formats(self, names: Collection[str], net: str) -> dict[str, str]:
        """Return what each operator of `names`, those of `net` that have a choice, becomes; SchemeError as below."""
        if self.where != ONNX:
            raise SchemeError(f"the plan is one of a language model, in {self.where}: {net} is a net")
        self._check_names(names, net)
        return {name: self.formats.get(name, self.file_type) for name in names}

    def tensor_formats(self, model: Model) -> tuple[str, ...]:
        """Return what `--tensor-format` would say; SchemeError for a tensor that `model` does not have."""
        if self.where == ONNX:
            raise SchemeError(f"the plan is one of a net: {model.name} is a language model")
        self._check_names([tensor.name for tensor in model.tensors], model.name)
        return tuple(f"^{re.escape(name)}$={self._format(kind)}" for name, kind in self.formats.items())

    def _check_names(self, names: Collection[str], model: str) -> None:
        for name in self.formats:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3)
                hint = f"; near it are {', '.join(near)}" if near else ""
                raise SchemeError(f"the plan names {name!r}, which {model} does not have{hint}")

    def to_yaml(self, shares: Mapping[str, Share] | None = None, *, name: str = "plan.yaml") -> str:
        """Return the file's text; `shares` stand behind the tensors as comments."""
        head = NET_HEAD if self.where == ONNX else HEAD
        lines = [head.format(name=name, out=self.example), f"schema: {self.schema}\n"]
        lines += [f"{key}: {_text(getattr(self, key))}\n" for key in (*TEXTS, *OF_NETS) if getattr(self, key)]
        for key in NUMBERS:
            if values := getattr(self, key):
                lines.append(f"{key}:\n")
                lines += [f"  {_text(word)}: {_number(value)}\n" for word, value in values.items()]
        lines.append("tensors:\n")
        width = max(len(_text(tensor)) + len(kind) for tensor, kind in self.formats.items()) + 2
        for tensor, kind in self.formats.items():
            entry = f"{_text(tensor)}: {kind}"
            if shares and tensor in shares:
                found = shares[tensor]
                entry = f"{entry:<{width}}  # {size(found.nbytes):>9}, {found.kl:.2e}, {found.share:.1%}"
            lines.append(f"  {entry}\n")
        return "".join(lines)

    def save(self, path: Path, shares: Mapping[str, Share] | None = None) -> None:
        """Write the file, whole or not at all."""
        with atomic_writer(path) as file:
            file.write(self.to_yaml(shares, name=path.name).encode())

    @classmethod
    def load(cls, path: Path) -> PlanFile:
        """Read a plan; MissingError, FormatError (what is wrong, where) or SchemeError (a format that is none)."""
        text = read_text(path, most=MAX_BYTES, too_large="no plan is that large")
        document = read_yaml(text, str(path), depth=MAX_DEPTH)
        try:
            return cls.from_object(document, place=str(path))
        except SchemeError as error:
            raise SchemeError(f"{path}: {error}") from error

    @classmethod
    def from_object(cls, document: object, *, place: str = "plan") -> PlanFile:
        """Build a plan from parsed YAML, unknown keys refused."""
        schema = document.get("schema") if isinstance(document, dict) else None
        if not isinstance(document, dict) or schema not in (MIX_SCHEMA, NET_SCHEMA):
            raise FormatError(f"{place}: not a plan of schema {MIX_SCHEMA} or {NET_SCHEMA}")
        texts = (*TEXTS, *OF_NETS) if schema == NET_SCHEMA else TEXTS
        if schema == MIX_SCHEMA and document.get("container") == ONNX:
            raise FormatError(f"{place}: a plan of a net has the schema {NET_SCHEMA}")
        known = {"schema", "tensors", *texts, *NUMBERS}
        unknown = sorted(str(key) for key in document if key not in known)
        if unknown:
            raise FormatError(f"{place}: unknown keys {unknown}; a plan has {sorted(known)}")
        tensors = document.get("tensors")
        if not isinstance(tensors, dict):
            raise FormatError(f"{place}: tensors must be name: format, one a line")
        for key, value in tensors.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise FormatError(f"{place}: tensors: {key!r:.60}: {value!r:.60} is no name: format")
        values: dict[str, Any] = {key: document[key] for key in texts if key in document}
        for key, value in values.items():
            if not isinstance(value, str):
                raise FormatError(f"{place}: {key} must be text, got {value!r:.60}")
        for key in NUMBERS:
            values[key] = _numbers(document.get(key, {}), f"{place}: {key}")
        return cls(formats=tensors, **values)


def _numbers(value: object, place: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise FormatError(f"{place} must be name: number, one a line")
    for key, figure in value.items():
        is_number = isinstance(figure, int | float) and not isinstance(figure, bool) and math.isfinite(figure)
        if not isinstance(key, str) or not is_number:
            raise FormatError(f"{place}: {key!r:.60}: {figure!r:.60} is no name: number")
    return dict(value)


def _text(value: str) -> str:
    """A text as YAML, quoted where it must be."""
    return str(yaml.safe_dump(value, width=10**6, allow_unicode=True)).removesuffix("...\n").strip()


def _number(value: float) -> str:
    """A number as YAML 1.1 reads it: a mantissa without a point would make it text."""
    if isinstance(value, int):
        return str(value)
    mantissa, mark, exponent = f"{value:.6g}".partition("e")
    return mantissa + (".0" if "." not in mantissa else "") + mark + exponent

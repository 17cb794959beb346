"""What a language model reads and computes for one token, from shapes alone; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import UnsupportedError
from tersor.core.format import Format
from tersor.files.gguf import BLOCKS, GgufFile
from tersor.formats import get
from tersor.formats.integer import IntegerRules
from tersor.kernels.linear.weights import is_group
from tersor.kernels.reference.linear import BLOCK
from tersor.models.load import load
from tersor.models.model import kind_of

__all__ = ["Traffic", "Weight", "gguf_traffic", "model_traffic", "weigh"]

LOOKUPS = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
"""Tensors of which a token reads one row."""
_WIDE = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Per token, with the experts that are active only.

    weight_bytes  read to generate a token: all weights but rows that are looked up
    body          multiply-adds by weights of the blocks
    head          multiply-adds by the output matrix, needed for the last token of a prompt alone
    is_integer    whether most of these weights are quantized, so that engines compute in int8
    is_mixture    whether there are experts: several sequences then read more of them
    file_bytes    of all files of weights
    expert_bytes  of `weight_bytes`, those of the experts of a token
    """

    weight_bytes: float
    body: float
    head: float
    is_integer: bool
    is_mixture: bool
    file_bytes: int
    expert_bytes: float = 0.0

    def prompt_operations(self, tokens: int) -> float:
        """Return floating point operations by weights for a prompt, two a multiply-add; attention is not counted."""
        return 2 * (self.body * tokens + self.head)


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor: its GGUF name, shape in numpy order, bytes, and type label."""

    name: str
    shape: tuple[int, ...]
    nbytes: float
    label: str


def gguf_traffic(path: Path) -> Traffic:
    """Read the header of a GGUF, whole or split."""
    with GgufFile(path) as file:
        weights = [Weight(t.name, t.shape, t.nbytes, BLOCKS[t.ggml_type][0]) for t in file.tensors.values()]
        size = sum(part.stat().st_size for part in file.paths)
        return weigh(weights, file.metadata, size)


def model_traffic(folder: Path) -> Traffic:
    """Read the headers of a checkpoint, in the type that transformers will hold it in; integers as our kernels do.

    UnsupportedError for architectures that no table row covers.
    """
    model = load(folder)
    named = _NAMES.get(str(model.config.get("dtype") or model.config.get("torch_dtype")))
    weights = []
    for tensor in model.tensors:
        label = tensor.source_dtype
        if label.startswith("int"):
            nbytes = _packed_bytes(_integers(label, model.config.get("quantization_config")), tensor.shape)
            if nbytes is not None:
                weights.append(Weight(tensor.name, tensor.shape, nbytes, label))
                continue
            label = "F32"  # decoded
        label = named or label
        if label not in _WIDE:
            raise UnsupportedError(f"{tensor.name} is stored as {label}: its bytes per weight vary")
        weights.append(Weight(tensor.name, tensor.shape, math.prod(tensor.shape) * _WIDE[label], label))
    metadata = {key: entry.value for key, entry in model.metadata.items()}
    files = (path for path in model.files if path.suffix in {".safetensors", ".bin", ".pt", ".pth"})
    return weigh(
        weights, {"general.architecture": model.architecture, **metadata}, sum(f.stat().st_size for f in files)
    )


def _integers(label: str, settings: object) -> Format:
    """Return the format that a label names.

    gptq and awq name bits and groups alone: their scales have 16 bits, and the settings say whether there are zero
    points other than half of the codes.
    """
    if label.endswith(("sym", "f16")):
        return get(label)
    values = settings if isinstance(settings, Mapping) else {}
    is_symmetric = bool(values.get("sym", not values.get("zero_point", values.get("quant_method") == "awq")))
    return get(f"{label}-{'sym' if is_symmetric else 'asym'}-f16")


def _packed_bytes(fmt: Format, shape: tuple[int, ...]) -> int | None:
    """Return what our kernels read of a matrix, as `PackedWeight` holds it; None where they do not take it.

    Codes of 2 and 3 bits lie in 4, rows in blocks. A group has a scale, and a byte of zero point where that is not
    half of the codes as they lie.
    """
    rules, (rows, columns) = fmt.rules, shape[-2:]
    width = fmt.block or columns
    if not isinstance(rules, IntegerRules) or rules.span == "tensor" or not is_group(width):
        return None
    bits = max(rules.bits, 4)
    has_zeros = not rules.symmetric or bits != rules.bits
    lined = math.prod(shape[:-2]) * -(-rows // BLOCK) * BLOCK
    return lined * (columns * bits // 8 + columns // width * (rules.scale_bytes + has_zeros))


def weigh(weights: Iterable[Weight], metadata: Mapping[str, object], file_bytes: int) -> Traffic:
    """Sum up tensors: looked-up rows count nothing, a tied embedding counts as the output matrix, experts by share."""
    rows = list(weights)
    prefix = metadata.get("general.architecture")
    experts, used = (metadata.get(f"{prefix}.{key}") for key in ("expert_count", "expert_used_count"))
    is_mixture = isinstance(experts, int) and isinstance(used, int) and 0 < used < experts
    share = used / experts if is_mixture and isinstance(used, int) and isinstance(experts, int) else 1.0
    is_tied = not any(kind_of(row.name) == "output" for row in rows)
    total = body = head = narrow = of_experts = 0.0
    for row in rows:
        kind = kind_of(row.name)
        if kind in LOOKUPS and not (kind == "token_embd" and is_tied):
            continue
        active = share if "_exps" in row.name else 1.0
        total += row.nbytes * active
        of_experts += row.nbytes * active if "_exps" in row.name else 0
        narrow += 0 if row.label in _WIDE else row.nbytes * active
        if len(row.shape) > 1:
            count = math.prod(row.shape) * active
            body, head = (body, head + count) if kind in {"output", "token_embd"} else (body + count, head)
    return Traffic(total, body, head, 2 * narrow > total, is_mixture, file_bytes, of_experts)

"""From integer groups to blocks of GGUF without a change: the same codes under the same scales, or a refusal.

q4_0 is d·(c - 8), q4_1 is d·c + m, q8_0 is d·c with signed bytes; d and m are binary16. Groups of any multiple of 32
columns become several blocks with one scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import SchemeError, ShapeError, TersorError
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.groups import Groups, integer_rules, row_blocks, unpack_groups
from tersor.kernels import codec
from tersor.kernels.reference.families.legacy import WIDTH, affine_grid, symmetric_grid
from tersor.models.model import ModelTensor
from tersor.models.quantized_checkpoint import QuantizedCheckpoint
from tersor.models.transforms import Source, origin

__all__ = ["TARGETS", "gathered_blocks", "to_gguf_blocks"]

TARGETS = ("q4_0", "q4_1", "q8_0")


def to_gguf_blocks(tensor: QuantizedTensor, target: str) -> QuantizedTensor:
    """Return `tensor`, a matrix in an integer format, as `target` that decodes to exactly the same numbers.

    target  q4_0 (symmetric, up to 4 bits), q4_1 (up to 4 bits), q8_0 (any whose values are -128 … 127 scales)
    Raises SchemeError or ShapeError with the reason where the grid does not allow it.
    """
    _check_target(target)
    rules = integer_rules(tensor.format, target)
    columns = tensor.shape[-1]
    width = rules.group or columns
    if width % WIDTH:
        raise ShapeError(f"groups of {width} columns do not divide into blocks of {WIDTH} ({target})")
    if target != "q8_0" and rules.bits > 4:
        raise SchemeError(f"{target} has 4 bits, {tensor.format.name} has {rules.bits}: use q8_0")
    if target == "q4_0" and not rules.symmetric:
        raise SchemeError(f"q4_0 has no zero points, {tensor.format.name} has: use q4_1 or q8_0")
    flat = QuantizedTensor(tensor.format, (len(tensor.data), columns), tensor.data)
    fmt = get(target)
    data = np.empty((len(tensor.data), fmt.row_bytes(columns)), np.uint8)
    for start, stop in row_blocks(flat.shape):
        data[start:stop] = _blocks(unpack_groups(flat, start, stop), target)
    return QuantizedTensor(fmt, tensor.shape, data, tensor.fallback)


def gathered_blocks(tensor: ModelTensor, checkpoint: QuantizedCheckpoint, target: str) -> QuantizedTensor:
    """Return a tensor of the model in `checkpoint` as `target`, rows in GGUF's order, codes verbatim.

    Raises SchemeError where a source is not quantized or the architecture changes its numbers, and what
    `to_gguf_blocks` raises, with the source named.
    """
    _check_target(target)
    found = origin(tensor.values, 0, tensor.rows)
    if bool((found.shift != 0).any()) or bool((found.factor != 1).any()):
        raise SchemeError(f"{tensor.name}: its numbers are changed on the way into a GGUF, so codes cannot be kept")
    data = np.empty((tensor.rows, get(target).row_bytes(tensor.columns)), np.uint8)
    for index, source in enumerate(found.sources):
        if not isinstance(source, Source) or source.name not in checkpoint.quantized_names:
            raise SchemeError(f"{tensor.name}: is not quantized in the checkpoint, so there are no codes to keep")
        try:
            blocks = to_gguf_blocks(checkpoint.quantized(source.name), target).data
        except TersorError as error:
            raise type(error)(f"{source.name}: {error}") from error
        here = found.which == index
        data[here] = blocks[found.row[here]]
    return QuantizedTensor(get(target), tensor.shape, data)


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise SchemeError(f"codes can be kept in {', '.join(TARGETS)}, not in {target}")


def _blocks(groups: Groups, target: str) -> Bytes:
    rows, columns = groups.codes.shape
    repeats = columns // WIDTH // groups.scales.shape[1]
    scales = _exact_half(groups.scales, "scale").repeat(repeats, axis=1).reshape(-1)
    zeros = groups.zeros.repeat(repeats, axis=1).reshape(-1, 1).astype(np.int32)
    codes = groups.codes.reshape(-1, WIDTH).astype(np.int32)
    d = codec.tensor(scales)
    if target == "q4_1":
        minima = _exact_half(-(zeros[:, 0] * scales.astype(np.float64)), "minimum (zero point times scale)")
        grid = affine_grid(d, codec.tensor(minima), 4)
    else:
        bits = 4 if target == "q4_0" else 8
        grid = symmetric_grid(d, bits)
        codes = codes - zeros + (1 << (bits - 1))
        if int(codes.min()) < 0 or int(codes.max()) >= 1 << bits:
            raise SchemeError(
                f"{target} reaches {-1 << (bits - 1)} to {(1 << (bits - 1)) - 1} scales, the codes do more"
            )
    packed: Bytes = get(target).pack(grid, codec.tensor(codes)).reshape(rows, -1).numpy()
    return packed


def _exact_half(values: npt.NDArray[Any], what: str) -> Float32:
    """Return the values as float32, if binary16 holds each of them; SchemeError names the first that it does not."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float64)
    wrong = np.flatnonzero((rounded != values).reshape(-1))
    if wrong.size:
        value = float(values.reshape(-1)[wrong[0]])
        raise SchemeError(f"the {what} {value!r} is not a number of binary16, so the result would not be the same")
    return values.astype(np.float32)

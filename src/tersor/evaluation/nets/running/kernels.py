"""Time of every kernel that ONNX Runtime ran, its multiply-adds and bytes, and its share of the machine's roof.

Source: the profile that onnxruntime writes (core/common/profiler.cc): one event a kernel with the shapes of what goes
in and out, in a JSON list.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.errors import EngineError
from tersor.evaluation.nets.running.engines import Loaded, Way
from tersor.evaluation.nets.running.race import Sizes
from tersor.targets.roofs import Roofs

__all__ = ["Kernel", "kernels_of", "operations"]

RUNS = 12
"""Of the net while it is profiled; each kernel's time is the median."""
_INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "QAttention")
_WIDTHS = {
    "float": 4, "double": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4,
    "uint32": 4, "int64": 8, "uint64": 8, "bool": 1,
}  # fmt: skip
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a net.

    operator    such as QLinearConv
    seconds     median over runs
    operations  two a multiply-add; 0 for what only moves or compares numbers
    nbytes      of everything that goes in and comes out, weights included
    is_integer  whether it multiplies integers
    share       of what the roof allows: the longer of arithmetic and memory, over the time it took
    bound       "arithmetic" or "memory"
    """

    name: str
    operator: str
    seconds: float
    operations: float
    nbytes: float
    is_integer: bool
    share: float
    bound: str


def kernels_of(path: Path, threads: int, sizes: Sizes, roofs: Roofs, *, timeout_s: float = 600) -> list[Kernel]:
    """Run the net in ONNX Runtime with a profile and return its kernels in the order in which they ran."""
    way = Way("onnxruntime", threads, {"layout": True, "spin": True})
    with (
        tempfile.TemporaryDirectory() as folder,
        Loaded(path, way, batch=sizes.batch, length=sizes.length, timeout_s=timeout_s, profile=Path(folder)) as loaded,
    ):
        loaded.seconds(RUNS)
        events = json.loads(loaded.end_profile().read_text(encoding="utf-8"))
    return _kernels(events, roofs)


def _kernels(events: Sequence[Mapping[str, Any]], roofs: Roofs) -> list[Kernel]:
    times: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, Mapping[str, Any]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            times[name].append(float(event["dur"]) / 1e6)
            seen.setdefault(name, event["args"])
    if not seen:
        raise EngineError("onnxruntime wrote a profile without a single kernel: is this a release that we know?")
    return [_kernel(name, times[name], told, roofs) for name, told in seen.items()]


def _kernel(name: str, seconds: Sequence[float], told: Mapping[str, Any], roofs: Roofs) -> Kernel:
    operator = str(told.get("op_name", ""))
    inputs, outputs = _shapes(told.get("input_type_shape")), _shapes(told.get("output_type_shape"))
    count, took = operations(operator, inputs, outputs), float(np.median(seconds))
    nbytes = sum(math.prod(shape) * _WIDTHS.get(kind, 4) for kind, shape in (*inputs, *outputs))
    is_integer = operator.startswith(_INTEGER)
    peak = roofs.byte_ops if is_integer and roofs.byte_ops is not None else roofs.float_flops
    computing, moving = count / peak, nbytes / roofs.read_bytes_per_s
    bound = "arithmetic" if computing > moving else "memory"
    share = max(computing, moving) / took if took > 0 else 0.0
    return Kernel(name.removesuffix(_SUFFIX), operator, took, count, nbytes, is_integer, share, bound)


def _shapes(told: object) -> list[tuple[str, tuple[int, ...]]]:
    """Read `[{"float": [1, 3, 224, 224]}, …]`."""
    rows = told if isinstance(told, list) else []
    return [(str(kind), tuple(int(size) for size in shape)) for row in rows for kind, shape in row.items()]


def operations(
    operator: str, inputs: Sequence[tuple[str, tuple[int, ...]]], outputs: Sequence[tuple[str, tuple[int, ...]]]
) -> float:
    """Return operations of a kernel from its shapes, two a multiply-add; 0 for all but layers that multiply matrices.

    >>> operations("Conv", [("float", (1, 3, 8, 8)), ("float", (4, 3, 3, 3))], [("float", (1, 4, 8, 8))])
    13824.0
    """
    if not inputs or not outputs:
        return 0.0
    made = math.prod(outputs[0][1])
    if "Conv" in operator and "Transpose" not in operator:
        weight = next((shape for _, shape in inputs[1:] if len(shape) == len(inputs[0][1])), None)
        return 0.0 if weight is None else 2.0 * made * math.prod(weight[1:])
    if "ConvTranspose" in operator:
        weight = next((shape for _, shape in inputs[1:] if len(shape) == len(inputs[0][1])), None)
        return 0.0 if weight is None else 2.0 * math.prod(inputs[0][1]) * math.prod(weight[1:])
    if "MatMul" in operator or "Gemm" in operator:
        inner = inputs[0][1]
        return 2.0 * made * inner[-1] if inner else 0.0  # a transposed first matrix is seldom, and square where it is
    return 0.0

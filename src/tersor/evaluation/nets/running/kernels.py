"""Time of every kernel that an engine ran, its multiply-adds and bytes, and its share of the machine's roof.

Source for ONNX Runtime: the profile that it writes (core/common/profiler.cc): one event a kernel with the shapes of
what goes in and out, in a JSON list. For others: `counters.py`.
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
from tersor.evaluation.nets.running.counters import Row
from tersor.evaluation.nets.running.engines import Loaded, Way
from tersor.evaluation.nets.running.race import Sizes
from tersor.targets.roofs import Roofs

__all__ = ["UNKNOWN", "Kernel", "kernels_of", "of_roof", "operations"]

UNKNOWN = "unknown"
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
    seconds     median over runs; in OpenVINO the mean
    operations  two a multiply-add; 0 for what only moves or compares numbers; None where nobody tells
    nbytes      of everything that goes in and comes out, weights included; None where nobody tells
    is_integer  whether it multiplies integers
    share       of what the roof allows: the longer of arithmetic and memory, over the time it took; None: not known
    bound       "arithmetic" or "memory", "unknown" without a share
    """

    name: str
    operator: str
    seconds: float
    operations: float | None
    nbytes: float | None
    is_integer: bool
    share: float | None
    bound: str


def kernels_of(path: Path, way: Way, sizes: Sizes, roofs: Roofs, *, timeout_s: float = 600) -> list[Kernel]:
    """Run the net one way while its engine counts, and return its kernels in the order in which they ran.

    Raises EngineError where the engine counts nothing.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Loaded(path, way, batch=sizes.batch, length=sizes.length, timeout_s=timeout_s, profile=Path(folder)) as loaded,
    ):
        counted = loaded.profile(RUNS)
        if "path" in counted:
            rows = _file_rows(json.loads(Path(counted["path"]).read_text(encoding="utf-8")), counted["weights"])
        else:
            rows = counted["rows"]
    if not rows:
        raise EngineError(f"{way.engine} counted not a single kernel: is this a release that we know?")
    return [_kernel(row, roofs) for row in rows]


def _file_rows(events: Sequence[Mapping[str, Any]], weights: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Return the rows that ONNX Runtime's profile holds, with the weights that it leaves out."""
    times: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, Mapping[str, Any]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            times[name].append(float(event["dur"]))
            seen.setdefault(name, event["args"])
    found = []
    for name, told in seen.items():
        operator = str(told.get("op_name", ""))
        ins, outs = _shapes(told.get("input_type_shape")), _shapes(told.get("output_type_shape"))
        ins += _left_out(ins, weights.get(name.removesuffix(_SUFFIX), ()))
        found.append(
            {
                "name": name.removesuffix(_SUFFIX),
                "operator": operator,
                "us": float(np.median(times[name])),
                "operations": operations(operator, ins, outs),
                "bytes": float(sum(math.prod(shape) * _WIDTHS.get(kind, 4) for kind, shape in (*ins, *outs))),
                "is_integer": operator.startswith(_INTEGER),
            }
        )
    return found


def _kernel(row: Row, roofs: Roofs) -> Kernel:
    name, operator, took = str(row["name"]), str(row["operator"]), float(row["us"]) / 1e6
    is_integer = bool(row["is_integer"])
    return of_roof(name, operator, took, row["operations"], row["bytes"], is_integer=is_integer, roofs=roofs)


def of_roof(
    name: str,
    operator: str,
    seconds: float,
    operations: float | None,
    nbytes: float | None,
    *,
    is_integer: bool,
    roofs: Roofs,
) -> Kernel:
    """Hold what took `seconds` against the roof; of what is not known of it, nothing follows."""
    share, bound = None, UNKNOWN
    if operations is not None and nbytes is not None:
        peak = roofs.int8_ops if is_integer and roofs.int8_ops is not None else roofs.float_flops
        computing, moving = operations / peak, nbytes / roofs.read_bytes_per_s
        bound = "arithmetic" if computing > moving else "memory"
        share = max(computing, moving) / seconds if seconds > 0 else None
    return Kernel(name, operator, seconds, operations, nbytes, is_integer, share, bound)


def _left_out(told: Sequence[tuple[str, tuple[int, ...]]], stored: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
    left, found = list(told), []
    for kind, shape in stored:
        one = str(kind), tuple(int(size) for size in shape)
        if one in left:
            left.remove(one)
        else:
            found.append(one)
    return found


def _shapes(told: object) -> list[tuple[str, tuple[int, ...]]]:
    """Read `[{"float": [1, 3, 224, 224]}, …]`."""
    rows = told if isinstance(told, list) else []
    return [(str(kind), tuple(int(size) for size in shape)) for row in rows for kind, shape in row.items()]


def operations(
    operator: str, inputs: Sequence[tuple[str, tuple[int, ...]]], outputs: Sequence[tuple[str, tuple[int, ...]]]
) -> float | None:
    """Return operations of a kernel from its shapes, two a multiply-add; 0 for all but layers that multiply matrices.

    None for a convolution whose weights are not among the inputs.

    >>> operations("Conv", [("float", (1, 3, 8, 8)), ("float", (4, 3, 3, 3))], [("float", (1, 4, 8, 8))])
    13824.0
    """
    if not inputs or not outputs:
        return 0.0
    made = math.prod(outputs[0][1])
    if "Conv" in operator and "Transpose" not in operator:
        weight = next((shape for _, shape in inputs[1:] if len(shape) == len(inputs[0][1])), None)
        return None if weight is None else 2.0 * made * math.prod(weight[1:])
    if "ConvTranspose" in operator:
        weight = next((shape for _, shape in inputs[1:] if len(shape) == len(inputs[0][1])), None)
        return None if weight is None else 2.0 * math.prod(inputs[0][1]) * math.prod(weight[1:])
    if "MatMul" in operator or "Gemm" in operator:
        inner = inputs[0][1]
        return 2.0 * made * inner[-1] if inner else 0.0  # a transposed first matrix is seldom, and square where it is
    return 0.0

"""What engines themselves count of each kernel, read in their own process: time, shapes, types.

One row a kernel, as JSON goes: its `name` and `operator`, `us` a run, `operations` (two a multiply-add; None where what
it computes cannot be told from its shapes), `bytes` that go in and out (None where shapes are not known), `is_integer`.

OpenVINO: the graph that it executes, `CompiledModel.get_runtime_model`, with a mean time over all runs in whole
microseconds. torch: its profiler, of what inductor compiled with `cpp.enable_kernel_profile`, floats all; each time is
without what is called from within, and the profiler adds some to each call.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Row", "openvino_rows", "torch_rows", "weights_of"]

Row: TypeAlias = dict[str, Any]
Shape: TypeAlias = tuple[int, ...] | None

FLOAT = 4
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
"""OpenVINO's layers whose multiply-adds follow from shapes."""
LIGHT = (
    "Broadcast", "Concatenation", "Convert", "CumSum", "DepthToSpace", "Eltwise", "FakeQuantize", "Gather", "GatherND",
    "Interpolate", "LRN", "MVN", "NormalizeL2", "OneHot", "Pad", "Pooling", "RMS", "Reduce", "Reorder", "Reshape",
    "RoPE", "Select", "ShapeOf", "Softmax", "SpaceToDepth", "Split", "StridedSlice", "Tile", "TopK", "Transpose",
)  # fmt: skip
"""Those that move numbers, or do a few operations on each. All others, fused subgraphs among them: not known."""


def weights_of(path: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Return type and shape of what each node of the graph that ONNX Runtime executes has stored, by name of the node.

    Its profile leaves out the weights that it has packed anew for its kernels.
    """
    import onnx  # noqa: PLC0415 - only ever in the child

    graph = onnx.load(path, load_external_data=False).graph
    kinds = {onnx.TensorProto.FLOAT: "float", onnx.TensorProto.DOUBLE: "double"}
    stored = {
        one.name: (
            kinds.get(one.data_type, onnx.TensorProto.DataType.Name(one.data_type).lower()),
            [int(size) for size in one.dims],
        )
        for one in graph.initializer
    }
    return {node.name: [stored[name] for name in node.input if name in stored] for node in graph.node}


def openvino_rows(compiled: Any) -> list[Row]:
    """Return the kernels that ran, of a model compiled with PERF_COUNT, in the order in which they ran."""
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: str(_plain(value)) for key, value in node.get_rt_info().items()}
        if not told.get("execTimeMcs", "").isdecimal():
            continue  # constants, and what was fused into another
        ins, outs = ([_port(port) for port in ports] for ports in (node.inputs(), node.outputs()))
        shapes = [shape for shape, _ in (*ins, *outs)]
        kind = told.get("layerType", node.get_type_name())
        found.append(
            {
                "name": node.get_friendly_name(),
                "operator": kind,
                "us": float(told["execTimeMcs"]),
                "operations": _layer_operations(kind, [shape for shape, _ in ins], [shape for shape, _ in outs]),
                "bytes": None if None in shapes else sum(_size(shape) * width for shape, width in (*ins, *outs)),
                "is_integer": told.get("primitiveType", "").upper().endswith("I8"),
            }
        )
    return found


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _port(port: Any) -> tuple[Shape, int]:
    """Shape, None where it varies, and bytes of an element."""
    shape = port.get_partial_shape()
    known = None if shape.is_dynamic else tuple(int(axis.get_length()) for axis in shape)
    return known, int(port.get_element_type().size)


def _size(shape: Shape) -> int:
    return math.prod(shape or ())


def _layer_operations(kind: str, ins: Sequence[Shape], outs: Sequence[Shape]) -> float | None:
    """Return operations of a layer of OpenVINO; weights of groups have an axis more: [groups, out, in, …]."""
    if kind in LIGHT:
        return 0.0
    if kind not in PRODUCTS or len(ins) < 2 or not outs or None in (ins[0], ins[1], outs[0]):
        return None
    first, weight, made = ins[0] or (), ins[1] or (), outs[0] or ()
    if kind in ("FullyConnected", "MatMul"):
        return 2.0 * math.prod(made) * first[-1] if first else None  # transposed ones are square, or fused away
    grouped = len(weight) - len(first)
    if grouped not in (0, 1):
        return None
    if kind == "Convolution":
        return 2.0 * math.prod(made) * math.prod(weight[1 + grouped :])
    return 2.0 * math.prod(first) * math.prod(weight[1 + grouped :])


def torch_rows(run: Callable[[], object], runs: int) -> list[Row]:
    """Run a compiled net under torch's profiler, and return what took time in it, by name and shapes.

    Shapes are told of what inductor leaves to libraries (convolutions, products), not of the loops that it makes, nor
    of the Python around them.
    """
    import torch  # noqa: PLC0415 - only ever in the child

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        for _ in range(runs):
            run()
    calls: dict[str, list[Any]] = defaultdict(list)
    for event in found.events():
        shapes = " ".join("×".join(map(str, shape)) for shape in event.input_shapes if shape)
        calls[f"{event.name} {shapes}".rstrip()].append(event)
    return [_torch_row(name, events, runs) for name, events in calls.items()]


def _torch_row(name: str, events: Sequence[Any], runs: int) -> Row:
    """One row for all calls of a name with the same shapes: several in a run add up."""
    calls = max(1, round(len(events) / runs))
    first = events[0]
    ends = _torch_ends(str(first.name), list(first.input_shapes), list(getattr(first, "concrete_inputs", None) or ()))
    count, values = (None, None) if ends is None else ends
    return {
        "name": name if calls == 1 else f"{calls} × {name}",
        "operator": str(first.name).rpartition(":")[2],
        "us": calls * float(np.median([event.self_cpu_time_total for event in events])),
        "operations": None if count is None else calls * count,
        "bytes": None if values is None else FLOAT * calls * values,
        "is_integer": False,
    }


def _torch_ends(name: str, shapes: list[Any], given: list[Any]) -> tuple[float, float] | None:
    """Return operations of a call, and numbers that go in and come out; None where its shapes do not tell.

    >>> _torch_ends("aten::mm", [[2, 3], [3, 4]], [])
    (48.0, 26.0)
    """
    word = name.rpartition(":")[2]
    if word in ("mm", "bmm", "addmm", "baddbmm") and len(shapes) > 1:
        start = 1 if word in ("addmm", "baddbmm") else 0
        first, second = shapes[start], shapes[start + 1]
        return _product(first, second, second[-1], start and math.prod(shapes[0]))
    if word == "_mkl_linear":
        return _product(shapes[0], shapes[2], shapes[2][0], 0)
    if word == "_linear_pointwise":
        return _product(shapes[0], shapes[1], shapes[1][0], 0)
    if word in ("_convolution_pointwise", "_convolution_pointwise_"):
        at = 1 if word.endswith("_") else 0  # what is added to comes before the images then
        image, weight, bias = shapes[at], shapes[at + 1], shapes[at + 2]
        made = list(shapes[0]) if at else _convolved(image, weight, given[at + 3 : at + 6])
        if made is None or len(weight) != len(image):
            return None
        read = math.prod(image) + math.prod(weight) + math.prod(bias or [0]) + at * math.prod(made)
        return 2.0 * math.prod(made) * math.prod(weight[1:]), float(read + math.prod(made))
    return None


def _product(first: list[int], second: list[int], columns: int, more: int) -> tuple[float, float] | None:
    """Of a product whose result has `columns`; `more` numbers are read beside."""
    if not first or not second:
        return None
    made = math.prod(first[:-1]) * columns
    return 2.0 * made * first[-1], float(math.prod(first) + math.prod(second) + made + more)


def _convolved(image: list[int], weight: list[int], given: list[Any]) -> list[int] | None:
    """Return the shape of what a convolution makes, from its padding, strides and dilation where they are told."""
    axes = len(image) - 2
    if len(given) < 3 or not all(isinstance(one, list) and len(one) == axes for one in given):
        return None
    padding, strides, dilation = given
    sides = [
        (image[2 + n] + 2 * padding[n] - dilation[n] * (weight[2 + n] - 1) - 1) // strides[n] + 1 for n in range(axes)
    ]
    return [image[0], weight[0], *sides]

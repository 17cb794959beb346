from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.evaluation.nets.running import counters
from tersor.evaluation.nets.running.engines import NET_ENGINES, Way, installed, ways
from tersor.evaluation.nets.running.kernels import UNKNOWN, kernels_of, operations
from tersor.evaluation.nets.running.race import Sizes
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe, quantize_net
from tersor.targets.roofs import Roofs

WAY = Way("onnxruntime", 1, {"layout": True, "spin": True})
ROOFS = Roofs(1, 1e10, 1e11, 4e11, 0, "given", 0.0)


def test_the_kernels_of_a_net_are_timed_and_counted(convolution: Path) -> None:
    found = {kernel.operator: kernel for kernel in kernels_of(convolution, WAY, Sizes(batch=2), ROOFS)}
    conv = found.get("FusedConv") or found["Conv"]
    assert conv.operations == 2 * 2 * (16 * 8 * 8) * 27
    assert found["Gemm"].operations == 2 * 2 * 5 * 1024
    assert conv.nbytes == 4 * (2 * 3 * 64 + 16 * 27 + 2 * 16 * 64)
    assert all(kernel.seconds > 0 and not kernel.is_integer for kernel in found.values())
    assert conv.share == pytest.approx(max(conv.operations / 1e11, conv.nbytes / 1e10) / conv.seconds)


def test_the_longer_of_the_two_roofs_binds(convolution: Path) -> None:
    slow = kernels_of(convolution, WAY, Sizes(), replace(ROOFS, float_flops=1e6))
    assert {kernel.bound for kernel in slow if kernel.operations} == {"arithmetic"}
    far = kernels_of(convolution, WAY, Sizes(), replace(ROOFS, read_bytes_per_s=1e3))
    assert {kernel.bound for kernel in far} == {"memory"}


MACS = 16 * 8 * 8 * 27 + 5 * 1024


def engines() -> list[Any]:
    marks = {"onnxruntime": (), "openvino": (), "torch": (pytest.mark.slow,)}
    return [pytest.param(name, marks=marks[name]) for name in NET_ENGINES]


@pytest.mark.parametrize("engine", engines())
def test_every_engine_counts_the_multiply_adds_of_the_net(convolution: Path, engine: str) -> None:
    reason = installed(engine)
    if reason:
        pytest.skip(reason)
    found = kernels_of(convolution, ways((engine,), (1,), every_setting=False)[0], Sizes(batch=2), ROOFS)
    assert sum(kernel.operations or 0 for kernel in found) == 2 * 2 * MACS
    heavy = [kernel for kernel in found if kernel.operations]
    assert len(heavy) == 2
    assert all(kernel.bound != UNKNOWN for kernel in heavy)
    assert all(kernel.share is not None for kernel in heavy if kernel.seconds)
    weights = 4 * (16 * 27 + 5 * 1024)
    assert sum(kernel.nbytes or 0 for kernel in heavy) > weights
    assert all((kernel.share is None) == (kernel.bound == UNKNOWN) for kernel in found if kernel.seconds)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_weights_that_an_engine_has_packed_anew_count_too(convolution: Path, engine: str, tmp_path: Path) -> None:
    """ONNX Runtime tells no shapes of them: its convolutions of integers came to nothing."""
    reason = installed(engine)
    if reason:
        pytest.skip(reason)
    random = np.random.default_rng(0)
    feeds = [random.standard_normal((1, 3, 8, 8), dtype=np.float32) for _ in range(2)]
    path = tmp_path / "int8.onnx"
    quantize_net(Net.open(convolution), feeds, Recipe()).net.save(path)
    found = kernels_of(path, ways((engine,), (1,), every_setting=False)[0], Sizes(), ROOFS)
    assert sum(kernel.operations or 0 for kernel in found) == 2 * MACS
    assert all(kernel.is_integer for kernel in found if kernel.operations)


@pytest.mark.parametrize(
    ("kind", "ins", "outs", "count"),
    [
        ("Convolution", [(1, 8, 9, 9), (4, 8, 3, 3)], [(1, 4, 7, 7)], 2 * 4 * 49 * 72),
        ("Convolution", [(1, 8, 9, 9), (8, 1, 1, 3, 3)], [(1, 8, 9, 9)], 2 * 8 * 81 * 9),
        ("Deconvolution", [(1, 4, 5, 5), (4, 2, 2, 2)], [(1, 2, 10, 10)], 2 * 100 * 8),
        ("FullyConnected", [(1, 6, 7), (5, 7)], [(1, 6, 5)], 2 * 30 * 7),
        ("Softmax", [(4, 4)], [(4, 4)], 0),
        ("Subgraph", [(4, 4), (4, 4)], [(4, 4)], None),
        ("Convolution", [None, (4, 8, 3, 3)], [(1, 4, 7, 7)], None),
        ("Convolution", [(1, 8)], [], None),
    ],
)
def test_layers_of_openvino_are_counted_where_shapes_tell(
    kind: str, ins: list[Any], outs: list[Any], count: float | None
) -> None:
    assert counters._layer_operations(kind, ins, outs) == count


def test_calls_of_torch_are_counted_where_shapes_tell() -> None:
    ends = counters._torch_ends
    image, weight = [1, 8, 9, 9], [4, 8, 3, 3]
    told = ["", "", "", [1, 1], [2, 2], [1, 1], 1]
    made = 4 * 5 * 5
    moved = 8 * 81 + 4 * 72 + 4 + made
    assert ends("mkldnn::_convolution_pointwise", [image, weight, [4]], told) == (2 * made * 72, moved)
    added = ends("mkldnn::_convolution_pointwise_", [[1, 4, 5, 5], image, weight, [4]], [])
    assert added == (2 * made * 72, moved + made)
    assert ends("mkldnn::_convolution_pointwise", [image, weight, [4]], []) is None
    assert ends("mkl::_mkl_linear", [[6, 7], [99, 1], [5, 7], [], []], []) == (2 * 30 * 7, 42 + 35 + 30)
    assert ends("aten::addmm", [[5], [6, 7], [7, 5]], []) == (2 * 30 * 7, 42 + 35 + 30 + 5)
    assert ends("graph_0_cpp_fused_relu_0", [], []) is None
    assert ends("aten::empty", [[]], []) is None


F = "float"


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "count"),
    [
        ("Conv", [(F, (1, 8, 9, 9)), (F, (8, 1, 3, 3))], [(F, (1, 8, 9, 9))], 2 * 8 * 81 * 9),
        ("QLinearConv", [("uint8", (1, 3, 4, 4)), (F, ()), ("uint8", ()), ("int8", (2, 3, 1, 1))],
         [("uint8", (1, 2, 4, 4))], 2 * 2 * 16 * 3),
        ("ConvTranspose", [(F, (1, 4, 5, 5)), (F, (4, 2, 2, 2))], [(F, (1, 2, 10, 10))], 2 * 100 * 8),
        ("MatMul", [(F, (2, 6, 7)), (F, (2, 7, 5))], [(F, (2, 6, 5))], 2 * 60 * 7),
        ("MatMulNBits", [(F, (1, 1, 64)), ("uint8", (32, 2, 16))], [(F, (1, 1, 32))], 2 * 32 * 64),
        ("Relu", [(F, (4, 4))], [(F, (4, 4))], 0),
        ("Conv", [], [], 0),
        ("QLinearConv", [("uint8", (1, 3, 4, 4)), ("uint8", ())], [("uint8", (1, 2, 4, 4))], None),
    ],
)  # fmt: skip
def test_multiply_adds_follow_from_shapes(
    operator: str,
    inputs: list[tuple[str, tuple[int, ...]]],
    outputs: list[tuple[str, tuple[int, ...]]],
    count: int | None,
) -> None:
    assert operations(operator, inputs, outputs) == count

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tersor.evaluation.nets.running.kernels import kernels_of, operations
from tersor.evaluation.nets.running.race import Sizes
from tersor.targets.roofs import Roofs

ROOFS = Roofs(1, 1e10, 1e11, 4e11, 0, "given", 0.0)


def test_the_kernels_of_a_net_are_timed_and_counted(convolution: Path) -> None:
    found = {kernel.operator: kernel for kernel in kernels_of(convolution, 1, Sizes(batch=2), ROOFS)}
    conv = found.get("FusedConv") or found["Conv"]
    assert conv.operations == 2 * 2 * (16 * 8 * 8) * 27
    assert found["Gemm"].operations == 2 * 2 * 5 * 1024
    assert conv.nbytes == 4 * (2 * 3 * 64 + 16 * 27 + 2 * 16 * 64)
    assert all(kernel.seconds > 0 and not kernel.is_integer for kernel in found.values())
    assert conv.share == pytest.approx(max(conv.operations / 1e11, conv.nbytes / 1e10) / conv.seconds)


def test_the_longer_of_the_two_roofs_binds(convolution: Path) -> None:
    slow = kernels_of(convolution, 1, Sizes(), replace(ROOFS, float_flops=1e6))
    assert {kernel.bound for kernel in slow if kernel.operations} == {"arithmetic"}
    far = kernels_of(convolution, 1, Sizes(), replace(ROOFS, read_bytes_per_s=1e3))
    assert {kernel.bound for kernel in far} == {"memory"}


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
    ],
)  # fmt: skip
def test_multiply_adds_follow_from_shapes(
    operator: str, inputs: list[tuple[str, tuple[int, ...]]], outputs: list[tuple[str, tuple[int, ...]]], count: int
) -> None:
    assert operations(operator, inputs, outputs) == count

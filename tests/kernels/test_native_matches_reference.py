"""The compiled kernels must give the bytes and values of the reference, whatever the instruction set and threads."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tersor.core.arrays import Bytes, Float32
from tersor.kernels import reference
from tersor.kernels.layouts import LAYOUTS

if TYPE_CHECKING:
    from tests.kernels.conftest import Ggml

try:
    native: Any = importlib.import_module("tersor.kernels._native")
except ImportError as error:
    pytest.skip(f"the native kernels are not built: {error}", allow_module_level=True)

LEVELS: list[str] = native.isa_levels()
NAMES = [name for name in reference.KERNELS if name in native.formats()]
SEARCHES = [(name, search) for name in NAMES for search in ("ggml", "best")]


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest, choose_isa: Callable[[str], None]) -> str:
    """Every instruction set that this processor has."""
    name: str = request.param
    choose_isa(name)
    return name


def expected_bytes(name: str, x: Float32, importance: Float32 | None, search: str) -> Bytes:
    shares = None if importance is None else torch.from_numpy(importance)
    packed: Bytes = reference.encode(name, torch.from_numpy(x), shares, search).numpy()
    return packed


def test_every_gguf_format_has_a_native_kernel() -> None:
    assert set(reference.KERNELS) - set(native.formats()) <= {"binary"}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize(("name", "search"), SEARCHES)
def test_bytes_are_equal(name: str, search: str, weighted: bool, rows: Float32, importance: Float32) -> None:
    shares = importance if weighted else None
    actual = native.encode(name, rows, shares, search, 1)
    np.testing.assert_array_equal(actual, expected_bytes(name, rows, shares, search))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("name", "search"), SEARCHES)
def test_single_blocks_and_odd_counts_of_rows_are_equal(
    name: str, search: str, rows: Float32, importance: Float32
) -> None:
    width = max(LAYOUTS[name].weights, 32)
    for count in (1, 2, 3, 5, 7, 9, 17):
        x = np.ascontiguousarray(rows[-count:, :width])
        shares = np.ascontiguousarray(importance[:width])
        np.testing.assert_array_equal(
            native.encode(name, x, shares, search, 1), expected_bytes(name, x, shares, search)
        )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", reference.BEST)
def test_best_bytes_are_equal_at_the_ends_of_float32_and_of_importance(name: str) -> None:
    rng = np.random.default_rng(24)
    normal = rng.standard_normal((2, 512))
    powers = np.array([-44, -41, -38, -22, -10, -8, -7, -5, 4, 6, 9, 19, 37])
    x = (normal * 10.0 ** powers[:, None, None]).reshape(-1, 512).astype(np.float32)
    for scale in (0, 1e-42, 1e-30, 1, 1e30, 1e37):
        shares = (rng.uniform(0, 3, 512) * scale).astype(np.float32)
        np.testing.assert_array_equal(
            native.encode(name, x, shares, "best", 1), expected_bytes(name, x, shares, "best")
        )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", NAMES)
def test_decoded_values_are_equal_for_any_bytes(name: str) -> None:
    for count, columns in ((1, 256), (7, 512), (33, 256)):
        data = np.random.default_rng(count).integers(0, 256, (count, LAYOUTS[name].row_bytes(columns)), dtype=np.uint8)
        actual = native.decode(name, data, columns, 1)
        expected = reference.decode(name, torch.from_numpy(data), columns).numpy()
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        there = ~np.isnan(expected)
        np.testing.assert_array_equal(actual[there].view(np.uint32), expected[there].view(np.uint32))


@pytest.mark.parametrize("search", ["ggml", "best"])
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_never_changes_the_bytes(
    name: str, search: str, rows: Float32, importance: Float32
) -> None:
    alone = native.encode(name, rows, importance, search, 1)
    for threads in (0, 2, 3, 8):
        np.testing.assert_array_equal(native.encode(name, rows, importance, search, threads), alone)
    values = native.decode(name, alone, rows.shape[1], 1)
    np.testing.assert_array_equal(native.decode(name, alone, rows.shape[1], 3), values)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_equal_those_of_ggml(name: str, weighted: bool, ggml: Ggml, rows: Float32, importance: Float32) -> None:
    shares = importance if weighted else None
    np.testing.assert_array_equal(native.encode(name, rows, shares, "ggml", 2), ggml.encode(name, rows, shares))


@pytest.mark.parametrize("search", ["ggml", "best"])
@pytest.mark.parametrize("name", NAMES)
def test_best_and_ggml_bytes_are_the_same_on_every_instruction_set(
    name: str, search: str, rows: Float32, importance: Float32
) -> None:
    before = native.isa()
    seen = []
    for level in LEVELS:
        native.set_isa(level)
        seen.append(native.encode(name, rows, importance, search, 1).tobytes())
    native.set_isa(before)
    assert len(set(seen)) == 1

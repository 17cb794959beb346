"""Run every native kernel over every kind of input: the child of test_sanitizers.py, which compiles it with checks."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tersor.kernels.layouts import LAYOUTS


def load(path: Path) -> Any:
    """Return the module compiled at `path`."""
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(rng: np.random.Generator, shape: tuple[int, int]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Return ordinary, empty, huge, subnormal, constant, one-sided and non-finite weights."""
    normal = rng.standard_normal(shape)
    kinds = [normal, normal * 0, normal * 1e30, normal * 1e-42, np.full(shape, 0.3), np.abs(normal)]
    kinds += [np.full(shape, np.inf), np.full(shape, np.nan)]
    return [kind.astype(np.float32) for kind in kinds]


def exercise(native: Any, name: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Encode, decode, and decode random bytes; the values do not matter here."""
    columns = shape[1]
    importance = np.abs(rng.standard_normal(columns)).astype(np.float32)
    importance[::3] = 0
    for x in inputs(rng, shape):
        for weights in (None, importance):
            for search in ("ggml", "best"):
                try:
                    data = native.encode(name, x, weights, search, 2)
                except ValueError:
                    continue
                native.decode(name, data, columns, 2)
    size = LAYOUTS[name].row_bytes(columns)
    native.decode(name, rng.integers(0, 256, (shape[0], size), dtype=np.uint8), columns, 1)


def exercise_logits(native: Any, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Compare, keep and bound logits, ruled-out and broken ones among them."""
    targets = rng.integers(0, shape[1], shape[0]).astype(np.int32)
    other = rng.standard_normal(shape).astype(np.float32)
    ruled_out = np.where(rng.random(shape) < 0.5, -np.inf, other).astype(np.float32)
    for x in (*inputs(rng, shape), ruled_out):
        for k in {1, min(5, shape[1]), shape[1]}:
            try:
                native.compare_logits(x, other, targets, 2)
                native.compare_logits(other, x, targets, 2)
                native.token_losses(x[::-1], targets, 2)
                native.compare_to_top_k(*native.top_k(x, k, 2), other, targets, 2)
                native.compare_to_top_k(*native.top_k(other, k, 2), x, targets, 2)
            except ValueError:
                continue


def exercise_feedback(native: Any, columns: int, rows: int, rng: np.random.Generator) -> None:
    """Round and propagate over parts and wholes, on affine grids and tables, broken values among them."""
    group = rng.integers(0, 3, columns).astype(np.int32)
    shape, empty = (columns, rows), np.zeros(0, np.float32)
    for x in inputs(rng, shape):
        matrix = rng.standard_normal((columns, columns)).astype(np.float32)
        step, offset = (rng.standard_normal((3, rows)).astype(np.float32) for _ in range(2))
        step[0] = 0
        for table, levels in ((empty, 16), (rng.standard_normal(7).astype(np.float32), 7), (empty, 256)):
            target, error, codes = x.copy(), np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
            arrays = (target, x, error, error, matrix, group, step, offset, np.full_like(step, 3), table, levels, codes)
            middle = columns // 2
            native.settle(*arrays, 0, middle, middle, 2)
            native.propagate(target, error, matrix, 0, middle, middle, columns, 3)
            native.settle(*arrays, middle, columns, columns, 1)


def exercise_scales(native: Any, groups: int, width: int, rng: np.random.Generator) -> None:
    """Search the scales of groups, of which as many as there are make a row."""
    for x in inputs(rng, (groups, width)):
        importance = rng.random(groups * width).astype(np.float32)
        scale, zero = np.full(groups, 0.1, np.float32), np.full(groups, 8, np.float32)
        native.search_scales(x, importance, scale, zero, np.array([1, 0.5], np.float32), 16, 2)


def exercise_places(native: Any, groups: int, width: int, rng: np.random.Generator) -> None:
    """Round places of arrays that end where their last element does, and take slopes back, broken ones among them."""
    step, zero = rng.random(groups, np.float32), np.full(groups, 2, np.float32)
    for_groups = np.empty((2, groups), np.float32)
    for place in inputs(rng, (groups, width)):
        gradient, made = rng.random(place.shape, np.float32), np.empty_like(place)
        at = [array.ctypes.data for array in (place, step, zero, gradient, made, for_groups[0], for_groups[1])]
        native.place_values(groups, width, at[0], at[1], at[1], at[2], 3.0, at[4], 3)
        native.place_slopes(groups, width, at[3], at[0], at[1], at[2], 3.0, at[4], at[5], at[6], 3)


def exercise_linear(native: Any, rows: int, columns: int, group: int, rng: np.random.Generator) -> None:
    """Multiply arrays that end where their last element does, by few tokens and many, broken values among them."""
    blocks, groups = -(-rows // 16), columns // group
    for bits, digits, zero, tokens in itertools.product((4, 8), (1, 2), (False, True), (1, 2, 7, 13)):
        codes = rng.integers(0, 256, blocks * columns * bits * 2, dtype=np.uint8)
        scales = rng.random(blocks * groups * 16, np.float32)
        zeros = rng.integers(0, 1 << bits, blocks * groups * 16, dtype=np.uint8)
        bias = rng.random(rows, np.float32)
        for x in inputs(rng, (tokens, columns)):
            y = np.empty((tokens, rows), np.float32)
            address = [array.ctypes.data for array in (codes, scales, zeros, bias, x, y)]
            place = (address[0], address[1], 0, address[2] if zero else 0, address[3] if zero else 0)
            how = (tokens, digits, zero, address[4], 0, address[5], 0, 3)
            native.linear(rows, columns, group, bits, *place, *how)


def exercise_attention(  # noqa: PLR0917 (sizes)
    native: Any, heads: int, key_heads: int, tokens: int, width: int, rng: np.random.Generator
) -> None:
    """Attend over arrays that end where their last element does, broken values among them, with a mask and without."""
    for key, kind in itertools.product(inputs(rng, (key_heads * tokens, width)), range(3)):
        stored = [key, key.astype(np.float16), rng.integers(0, 1 << 16, key.shape, dtype=np.uint16)][kind]
        query = np.ascontiguousarray(stored[:1].repeat(heads, 0))
        value = np.ascontiguousarray(stored[:, : width // 2 + 1])
        mask = rng.random((heads, tokens), np.float32)
        y = np.empty((heads, value.shape[1]), stored.dtype)
        keys = (stored.ctypes.data, 0, tokens * width, width)
        values = (value.ctypes.data, 0, tokens * value.shape[1], value.shape[1])
        for place in ((0, 0, 0), (mask.ctypes.data, 0, tokens)):
            sizes = (1, heads, key_heads, tokens, width, value.shape[1], kind)
            native.attend(*sizes, query.ctypes.data, *keys, *values, *place, 0.5, y.ctypes.data, 3)


def main() -> None:
    """Exercise every kernel on every instruction set."""
    native = load(Path(sys.argv[1]))
    rng = np.random.default_rng(0)
    for level in native.isa_levels():
        native.set_isa(level)
        for name in native.formats():
            block = LAYOUTS[name].weights
            for shape in ((1, block), (3, 2 * block), (7, 3 * block), (33, block), (1, 17 * block), (0, block), (2, 0)):
                exercise(native, name, shape, rng)
        for shape in ((1, 1), (3, 2), (2, 15), (2, 16), (3, 17), (2, 511), (1, 513), (5, 1500), (0, 7)):
            exercise_logits(native, shape, rng)
        for shape in ((1, 32), (7, 32), (130, 64), (259, 288), (0, 32)):
            exercise_feedback(native, *shape, rng)
        for shape in ((1, 1), (15, 7), (16, 32), (300, 128)):
            exercise_scales(native, *shape, rng)
        for shape in ((1, 1), (15, 7), (16, 33), (3000, 16), (0, 4)):
            exercise_places(native, *shape, rng)
        for rows, columns, group in ((1, 16, 16), (16, 64, 32), (45, 96, 48), (70, 80, 80)):
            exercise_linear(native, rows, columns, group, rng)
        for sizes in ((1, 1, 1, 1), (3, 1, 17, 15), (4, 2, 256, 33), (7, 7, 300, 64), (6, 1, 20, 512)):
            exercise_attention(native, *sizes, rng)
        sys.stdout.write(f"{level} done\n")


if __name__ == "__main__":
    main()

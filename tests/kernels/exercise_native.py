"""Run every native kernel over every kind of input: the child of test_sanitizers.py, which compiles it with checks."""

from __future__ import annotations

import importlib.util
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


def main() -> None:
    """Exercise every format, and the comparison of logits, on every instruction set."""
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
        sys.stdout.write(f"{level} done\n")


if __name__ == "__main__":
    main()

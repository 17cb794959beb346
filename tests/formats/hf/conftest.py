"""Matrices in integer formats with known codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest

from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.groups import Groups, pack_groups

Make: TypeAlias = Callable[..., tuple[QuantizedTensor, Groups]]


@pytest.fixture
def make() -> Make:
    """Return a function that makes a random matrix of a format: the tensor, and its codes, zeros and scales."""

    def made(name: str, rows: int, columns: int, seed: int = 0) -> tuple[QuantizedTensor, Groups]:
        fmt = get(name)
        levels = 1 << int(fmt.bits)
        random = np.random.default_rng(seed)
        groups = columns // (fmt.block or columns)
        codes = random.integers(0, levels, (rows, columns), dtype=np.uint8)
        zeros = random.integers(1, levels, (rows, groups), dtype=np.uint8)
        if "-asym" not in fmt.name:
            zeros[:] = levels // 2
        scales = (random.integers(1, 200, (rows, groups)) / 1024).astype(np.float32)
        values = Groups(codes, zeros, scales)
        return QuantizedTensor(fmt, (rows, columns), pack_groups(values, fmt)), values

    return made

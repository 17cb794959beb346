"""Matrices of integers in groups, and every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tersor.kernels.linear.weights import Real

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
ISAS = ("portable", "avx2", "avx512", "avx512vnni", "amx", "dotprod")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, choose_isa: Callable[[str], None]) -> str:
    """Every instruction set that this processor has."""
    name: str = request.param
    choose_isa(name)
    return name


@pytest.fixture
def matrix() -> Callable[..., Arrays]:
    """Return codes, zeros and scales with all codes used, the extremes side by side, and a group of scale zero."""

    def made(rows: int, columns: int, group: int, bits: int, *, symmetric: bool = True, real: Real = "f32") -> Arrays:
        rng = torch.Generator().manual_seed(rows * columns + group)
        levels, groups = 1 << bits, columns // group
        codes = torch.randint(0, levels, (rows, columns), generator=rng).to(torch.uint8)
        codes[0], codes[-1, : columns // 2] = levels - 1, 0
        shape = (rows, groups)
        zeros = torch.full(shape, levels // 2) if symmetric else torch.randint(0, levels, shape, generator=rng)
        scales = (torch.rand(shape, generator=rng) + 0.01).to(DTYPES[real]).float()
        scales[rows // 2, 0] = 0
        return codes, zeros.to(torch.uint8), scales

    return made


@pytest.fixture
def activations() -> Callable[..., torch.Tensor]:
    """Return tokens: gaussian with an outlier, zeros, huge, tiny, and one with the same value everywhere."""

    def made(tokens: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        rng = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, columns, generator=rng)
        x[0, columns // 3] = -40
        for token, factor in ((1, 0), (2, 1e4), (3, 1e-30), (4, 1e-39)):
            x[token : token + 1] *= factor
        x[5:6] = -0.3
        return x.to(dtype)

    return made

"""The module that stands in for torch.nn.Linear: shapes, casts, moves, compiling, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.kernels.linear.by_torch.module import torch_class, torch_linear
from tersor.kernels.linear.by_torch.products import DEQUANTIZED
from tersor.kernels.linear.by_torch.stored import Place, StoredWeight, place_of
from tersor.kernels.linear.module import quantized_linear
from tersor.kernels.linear.weights import pack_weight

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
CPU = Place(torch.device("cpu"))


@pytest.fixture
def weight(matrix: Callable[..., Arrays]) -> StoredWeight:
    codes, zeros, scales = matrix(48, 64, 64, 8)
    return StoredWeight(codes, scales, zeros, 8)


@pytest.fixture
def narrow(matrix: Callable[..., Arrays]) -> StoredWeight:
    codes, zeros, scales = matrix(48, 64, 32, 4, symmetric=False)
    return StoredWeight(codes, scales, zeros, 4)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_it_multiplies_any_leading_axes_as_the_module_of_our_own_kernels(weight: StoredWeight) -> None:
    assert weight.zeros is not None
    bias, x = torch.linspace(-1, 1, 48).to(torch.bfloat16), inputs(2, 3, 64)
    ours = quantized_linear(pack_weight(weight.codes, weight.zeros, weight.scales, bits=8), bias, per_token=True)
    module = torch_linear(weight, CPU, bias, rounded=True)
    assert torch.equal(module(x), ours(x))
    assert module(x[0, 0]).shape == (48,)
    assert module(x[:, :0]).shape == (2, 0, 48)
    assert module(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert isinstance(module, torch_class())
    assert "in_features=64, out_features=48, operator=torch._int_mm" in repr(module)


def test_columns_in_another_order(narrow: StoredWeight) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    x = inputs(5, 64)
    assert torch.equal(torch_linear(narrow, CPU, order=order)(x), torch_linear(narrow, CPU)(x[:, order]))
    with pytest.raises(ShapeError, match=r"order \[64\] are needed"):
        torch_linear(narrow, CPU, order=order[:-1])


def test_a_cast_of_the_model_rounds_no_scale(weight: StoredWeight, narrow: StoredWeight) -> None:
    x = inputs(5, 64)
    for one in (weight, narrow):
        net = torch.nn.Sequential(torch_linear(one, CPU, torch.ones(48), rounded=True))
        before = net(x)
        assert torch.equal(net.half()(x), before)
        assert torch.equal(copy.deepcopy(net)(x), before)
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), before)


def test_codes_stay_on_the_device_that_they_are_packed_for(narrow: StoredWeight) -> None:
    with pytest.raises(UnsupportedError, match=r"_weight_int4pack_mm are packed for cpu: .*device='meta'"):
        torch_linear(narrow, CPU).to("meta")
    with pytest.raises(ShapeError, match=r"\[48, 64\] on cpu takes \[\.\.\., 64\] there, got \(5, 64\) on meta"):
        torch_linear(narrow, CPU)(inputs(5, 64).to("meta"))
    with pytest.raises(ShapeError, match=r"got \(5, 63\) on cpu"):
        torch_linear(narrow, CPU)(inputs(5, 63))


def test_gradients_are_refused_where_there_are_none(weight: StoredWeight, matrix: Callable[..., Arrays]) -> None:
    x = inputs(5, 64).requires_grad_()
    with pytest.raises(UnsupportedError, match=r"torch\._int_mm has no gradient"):
        torch_linear(weight, CPU, rounded=True)(x)
    with torch.no_grad():
        torch_linear(weight, CPU, rounded=True)(x)
    codes, zeros, scales = matrix(47, 64, 16, 4)
    decoded = torch_linear(StoredWeight(codes, scales, zeros, 4), CPU)
    assert decoded.operator == DEQUANTIZED
    assert "groups that are multiples of 32" in repr(decoded)
    decoded(x).sum().backward()
    levels = (codes.float() - 8).reshape(47, 4, 16) * scales[..., None]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, levels.reshape(47, 64).sum(0).expand(5, 64))


def test_torch_compiles_it(weight: StoredWeight, narrow: StoredWeight) -> None:
    for one in (weight, narrow):
        module = torch_linear(one, CPU, torch.ones(48), rounded=True)
        x = inputs(5, 64)
        compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_says_what_it_says_on_the_processor(weight: StoredWeight, narrow: StoredWeight) -> None:
    x, place = inputs(5, 64), place_of("cuda")
    assert torch.equal(
        torch_linear(weight, place, rounded=True)(x.cuda()).cpu(), torch_linear(weight, CPU, rounded=True)(x)
    )
    made, wanted = torch_linear(narrow, place)(x.cuda()).cpu(), torch_linear(narrow, CPU)(x)
    assert float((made - wanted).abs().max() / wanted.abs().max()) < 0.02  # bfloat16
    with pytest.raises(UnsupportedError, match="packed for cuda"):
        torch_linear(narrow, place).cpu()

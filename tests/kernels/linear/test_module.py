"""The operator and the module: compiled, exported, saved and trained around, with the same bits."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tersor.core.errors import ShapeError, UnsupportedError
from tersor.kernels.linear.module import join, linear_class, quantized_linear
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.operators import register
from tersor.kernels.linear.weights import PackedWeight, pack_weight

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def weight(matrix: Callable[..., Arrays]) -> PackedWeight:
    return pack_weight(*matrix(48, 64, 32, 4, symmetric=False, real="f16"), bits=4, real="f16")


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_the_module_multiplies_any_leading_axes(weight: PackedWeight) -> None:
    bias = torch.linspace(-1, 1, 48).to(torch.bfloat16)
    module = quantized_linear(weight, bias, digits=2)
    x = inputs(2, 3, 64)
    assert torch.equal(module(x), multiply(x.reshape(6, 64), weight, bias.float(), 2).reshape(2, 3, 48))
    assert module(x[0, 0]).shape == (48,)
    assert "in_features=64, out_features=48, bits=4, groups=2, digits=2" in repr(module)
    assert isinstance(module, linear_class())


def test_columns_in_another_order(weight: PackedWeight) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    x = inputs(5, 64)
    assert torch.equal(quantized_linear(weight, order=order)(x), multiply(x[:, order], weight))
    with pytest.raises(ShapeError, match=r"order \[64\] are needed"):
        quantized_linear(weight, order=order[:-1])


def test_the_operator_obeys_the_rules_of_torch(weight: PackedWeight) -> None:
    parts = (weight.codes, weight.scales, weight.zeros, torch.zeros(48), 48, 4, 1, 1, False)
    for shape in ((3, 64), (2, 3, 64)):
        tests = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
        torch.library.opcheck(register(), (inputs(*shape), *parts), test_utils=tests)


def test_compiled_and_exported_programs_give_the_same_bits(weight: PackedWeight) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), quantized_linear(weight), torch.nn.ReLU()).eval()
    x = inputs(3, 8)
    with torch.no_grad():
        expected = net(x)
        compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), expected)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert "tersor.linear.default" in program.graph_module.code
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(x), expected)
    assert torch.equal(loaded(inputs(7, 8)), net(inputs(7, 8)))


def test_weights_that_are_loaded_or_copied_are_used(weight: PackedWeight, matrix: Callable[..., Arrays]) -> None:
    codes, zeros, scales = matrix(48, 64, 32, 4, symmetric=False)
    other = pack_weight(15 - codes, zeros, scales, bits=4, real="f16")
    module, x = quantized_linear(weight), inputs(4, 64)
    twin = copy.deepcopy(module)
    twin.load_state_dict(quantized_linear(other).state_dict())
    assert torch.equal(twin(x), multiply(x, other))
    assert not torch.equal(twin(x), module(x))
    module.load_state_dict(twin.state_dict(), assign=True)  # other memory under the same names
    assert torch.equal(module(x), multiply(x, other))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), module(x))
    assert torch.equal(module.to(torch.bfloat16)(x), multiply(x, other))


def test_gradients_pass_through_as_by_the_decoded_weight(weight: PackedWeight) -> None:
    module = quantized_linear(weight, torch.zeros(48))
    x = inputs(5, 64).requires_grad_()
    seen = inputs(5, 48)
    (module(x) * seen).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, seen @ weight.dequantized())


def test_a_module_that_was_used_is_copied_and_loaded_with_numbers_of_its_own(
    weight: PackedWeight, tmp_path: Path
) -> None:
    module, x = quantized_linear(weight), inputs(4, 64)
    expected = module(x)  # from here on it knows where its numbers lie
    twin: Any = copy.deepcopy(module)
    twin.codes.copy_(twin.codes ^ 1)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(module(x), expected)
    torch.save((module, x, expected), tmp_path / "module.pt")
    program = (
        "import sys, torch\n"
        "module, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(module(x), expected)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "module.pt")], check=True, timeout=120)


def test_no_layer_is_moved_where_the_kernels_do_not_run(weight: PackedWeight) -> None:
    layer, x = quantized_linear(weight, torch.zeros(48)), inputs(4, 64)
    expected = layer(x)
    with pytest.raises(UnsupportedError, match="run on the CPU: load the checkpoint with device='meta'"):
        torch.nn.Sequential(layer).to("meta")
    assert torch.equal(layer.cpu()(x), expected)


def test_numbers_that_are_assigned_from_elsewhere_are_not_read(weight: PackedWeight) -> None:
    state = quantized_linear(weight, torch.zeros(48)).state_dict()
    for part in ("scales", "zeros", "codes", "bias"):
        layer = quantized_linear(weight, torch.zeros(48))
        layer.load_state_dict({**state, "codes": state["codes"].clone(), part: state[part].to("meta")}, assign=True)
        with pytest.raises(ShapeError, match=r"run on the CPU, the weight lies on meta|the bias must be .* on meta"):
            layer(inputs(4, 64))


@pytest.mark.parametrize("name", ["codes", "scales", "zeros"])
def test_numbers_that_were_moved_to_share_them_are_found_where_they_are(weight: PackedWeight, name: str) -> None:
    module: Any = quantized_linear(weight)
    x = inputs(3, 64)
    expected = module(x)
    before = weight.arguments
    part: Any = getattr(module, name)
    part.share_memory_()
    assert weight.arguments != before
    assert {weight.codes.data_ptr(), weight.scales.data_ptr()} < set(weight.arguments)
    assert torch.equal(module(x), expected)


def test_layers_that_go_together_are_found_when_one_of_them_was_moved(weight: PackedWeight) -> None:
    layers: list[Any] = [quantized_linear(weight), quantized_linear(weight)]
    assert join(layers)
    x = inputs(64)
    with torch.no_grad():
        expected = [layer(x) for layer in layers]
        layers[1].share_memory()
        assert layers[0]._joint.weight.arguments[4] == layers[0].codes.data_ptr()
        assert all(torch.equal(layer(x), one) for layer, one in zip(layers, expected, strict=True))

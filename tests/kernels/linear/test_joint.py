"""Layers with one input, multiplied together: the same bits, whatever is asked of whom and when."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tersor.kernels.linear import joint
from tersor.kernels.linear.module import join, quantized_linear
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.weights import pack_weight

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Layers = Callable[..., list[Any]]
ROWS = (48, 16, 23)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def layers(matrix: Callable[..., Arrays]) -> Layers:
    def made(*, symmetric: bool = False, bias: bool = True, order: bool = False, **more: Any) -> list[Any]:
        chance = torch.Generator().manual_seed(1)
        turned = torch.randperm(64, generator=chance) if order else None
        return [
            quantized_linear(
                pack_weight(*matrix(rows, 64, 32, 4, symmetric=symmetric, real="f16"), bits=4, real="f16"),
                torch.randn(rows, generator=chance) if bias else None,
                order=turned,
                **more,
            )
            for rows in ROWS
        ]

    return made


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tokens(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("how", [{}, {"digits": 2}, {"per_token": True}, {"order": True}])
def test_the_same_bits_as_each_by_itself(layers: Layers, how: dict[str, Any], symmetric: bool, bias: bool) -> None:
    alone, together = (layers(symmetric=symmetric, bias=bias, **how) for _ in range(2))
    assert join(together)
    for shape in ((64,), (1, 1, 64), (3, 64), (2, 2, 64), (0, 64)):
        x = tokens(*shape)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(other(x), one(x))
            assert other(x).is_contiguous()


def test_one_product_for_all_of_them(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def counting(*given: Any) -> torch.Tensor:
        counted.append(1)
        return multiply(*given)

    monkeypatch.setattr(joint, "multiply", counting)
    together, x = layers(), tokens(1, 64)
    join(together)
    for layer in together:
        layer(x)
    assert len(counted) == 1
    for layer in together:  # nothing is kept for a tensor that may have other numbers by now
        layer(x)
    assert len(counted) == 2


def test_numbers_that_change_between_the_layers_are_seen(layers: Layers) -> None:
    alone, together = layers(), layers()
    join(together)
    x = tokens(1, 64)
    together[0](x)
    x.mul_(2)
    assert torch.equal(together[1](x), alone[1](x))
    together[0](x)
    other = tokens(1, 64, seed=3)
    assert torch.equal(together[1](other), alone[1](other))
    assert torch.equal(together[0](x), alone[0](x))


def test_numbers_that_change_in_inference_mode_are_seen(layers: Layers, threads: int) -> None:
    """Torch counts no changes there."""
    alone, together = layers(), layers()
    join(together)
    with torch.inference_mode():
        for x in (tokens(1, 64), tokens(1, 65)[:, 1:], tokens(64, 2)[:, 0]):  # some lie where eight bytes never begin
            together[0](x)
            x.mul_(2)
            assert torch.equal(together[0](x), alone[0](x)), threads
            x[..., 63] += 1
            assert torch.equal(together[1](x), alone[1](x)), threads
            assert torch.equal(together[2](x), alone[2](x)), threads


def test_one_product_in_inference_mode_where_threads_need_not_start_for_more(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    counted: list[int] = []

    def counting(*given: Any) -> torch.Tensor:
        counted.append(1)
        return multiply(*given)

    monkeypatch.setattr(joint, "multiply", counting)
    together = layers()
    join(together)
    with torch.inference_mode():
        x = tokens(1, 64)
        for layer in together:
            layer(x)
    assert len(counted) == threads - 1


def test_weights_that_are_loaded_copied_or_moved_are_used(layers: Layers) -> None:
    alone, together = layers(), layers(bias=False)
    join(together)
    x = tokens(1, 64)
    twins = copy.deepcopy(together)
    twins[1].codes = twins[1].codes ^ 1
    assert not torch.equal(twins[1](x), together[1](x))
    assert torch.equal(twins[0](x), together[0](x))
    whole = layers()
    join(whole)
    state = {name: value ^ 1 if name == "codes" else value for name, value in whole[1].state_dict().items()}
    state["bias"] = state["bias"] + 1
    expected = layers()[1]
    expected.load_state_dict(state)
    whole[1].load_state_dict(state)
    assert torch.equal(whole[1](x), expected(x))
    for one, other in zip((alone[0], alone[2]), (whole[0], whole[2]), strict=True):
        assert torch.equal(other(x), one(x))
    cast, plain = layers()[:2], layers()[:2]
    join(cast)
    for one, other in zip(plain, cast, strict=True):  # biases are rounded by that
        assert torch.equal(other.to(torch.bfloat16)(x), one.to(torch.bfloat16)(x))


def test_layers_that_do_not_go_together_stay_alone(layers: Layers, matrix: Callable[..., Arrays]) -> None:
    assert not join([layers()[0], layers(bias=False)[1]])
    assert not join([layers()[0], layers(symmetric=True)[1]])
    assert not join([layers()[0], layers(digits=2)[1]])
    assert not join([layers()[0], layers(order=True)[1]])
    assert not join(layers()[::-1])  # 23 rows end within a block
    eight = quantized_linear(pack_weight(*matrix(16, 64, 32, 8, real="f16"), bits=8, real="f16"))
    assert not join([layers(bias=False, symmetric=True)[0], eight])


def test_threads_do_not_take_one_anothers(layers: Layers) -> None:
    alone, together = layers(), layers()
    join(together)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = tokens(1, 64, seed=seed)
        with torch.no_grad():
            expected = [layer(x) for layer in alone]
            for _ in range(200):
                for one, layer in zip(expected, together, strict=True):
                    if not torch.equal(layer(x), one):
                        wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_inference_and_programs_go_their_own_ways(layers: Layers) -> None:
    alone, together = layers(), layers()
    join(together)
    x = tokens(1, 64)
    with torch.inference_mode():
        y = tokens(1, 64)
        assert torch.equal(together[1](y), alone[1](y))
    with torch.enable_grad():
        wanted = x.float().requires_grad_()
        together[0](wanted).sum().backward()
        assert wanted.grad is not None
    compiled: Any = torch.compile(together[2], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), alone[2](x))

"""One token attends to those before it as a sum over numbers has it, on every instruction set and any threads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tersor.core.errors import ShapeError
from tersor.kernels import attention, codec
from tersor.kernels.attention import attend
from tersor.kernels.on_torch import on_torch
from tersor.kernels.reference.attention import attend as defined

TYPES = (torch.float32, torch.float16, torch.bfloat16)
ISAS = ("portable", "avx2", "avx512")
KERNELS = attention


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(  # noqa: PLR0917 (sizes, as they are told everywhere)
    heads: int, key_heads: int, tokens: int, width: int, value_width: int, batch: int = 2
) -> tuple[Tensor, ...]:
    query = numbers(batch, heads, 1, width)
    key = numbers(batch, key_heads, tokens, width, seed=2)
    return query, key, numbers(batch, key_heads, tokens, value_width, seed=3)


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """One number after the other, in float64."""
    batch, heads = query.shape[:2]
    made = torch.zeros(batch, 1, heads, value.shape[3], dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            mine = head // (heads // key.shape[1])
            logits = []
            for token in range(key.shape[2]):
                score = sum(float(q) * float(k) for q, k in zip(query[b, head, 0], key[b, mine, token], strict=True))
                added = 0.0
                if mask is not None:
                    seen = mask[b % len(mask), head % mask.shape[1], 0, token]
                    added = float(seen) if mask.dtype != torch.bool else 0.0 if seen else float("-inf")
                logits.append(score * scaling + added)
            top = max(logits)
            weights = [math.exp(one - top) for one in logits]
            for token, weight in enumerate(weights):
                made[b, 0, head] += weight / sum(weights) * value[b, mine, token].double()
    return made


def masks(tokens: int) -> dict[str, Tensor | None]:
    seen = numbers(2, 1, 1, tokens, seed=4) > -0.5
    seen[..., -1] = True
    of_heads = numbers(2, 4, 1, tokens, seed=5) > -1
    of_heads[..., -1] = True
    return {
        "none": None,
        "of sequences": seen,
        "of all": seen[:1],
        "of heads": of_heads,
        "of numbers": numbers(2, 1, 1, tokens, seed=6),
    }


@pytest.mark.parametrize("kind", list(masks(1)))
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_it_is_the_sum_that_attention_is(kernel: str, kind: str, key_heads: int) -> None:
    query, key, value = case(4, key_heads, 21, 20, 7)
    mask = masks(21)[kind]
    made = attend(query, key, value, mask, 0.3)
    assert made.shape == (2, 1, 4, 7)
    torch.testing.assert_close(made.double(), by_hand(query, key, value, mask, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 255, 256, 257, 700])
@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "value_width"),
    [(1, 1, 1, 1), (3, 1, 64, 64), (6, 2, 33, 80), (7, 1, 128, 65), (4, 4, 512, 16)],
)
def test_every_size_is_as_defined(  # noqa: PLR0917 (one for each)
    kernel: str, heads: int, key_heads: int, width: int, value_width: int, tokens: int, dtype: torch.dtype
) -> None:
    query, key, value = (t.to(dtype) for t in case(heads, key_heads, tokens, width, value_width, batch=1))
    made = attend(query, key, value, None, None)
    assert made.dtype == dtype
    expected = defined(query.double().float(), key.float(), value.float(), None, width**-0.5)
    step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(made.float(), expected, rtol=max(step * 1.01, 1e-5), atol=2e-6)


def test_threads_change_no_bit() -> None:
    query, key, value = case(8, 2, 900, 64, 64)
    before, made = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(attend(query, key, value, None, None))
    torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_what_lies_apart_in_memory_is_found(kernel: str) -> None:
    """A cache with room behind its tokens, one laid out token by token, and one that is turned over."""
    query, key, value = case(4, 2, 40, 32, 32)
    expected = attend(query, key, value, None, None)
    roomy = numbers(2, 2, 90, 32, seed=9)
    roomy[:, :, :40] = key
    by_token = value.transpose(1, 2).contiguous().transpose(1, 2)
    turned = key.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(attend(query, roomy[:, :, :40], by_token, None, None), expected)
    assert torch.equal(attend(query, turned, value, None, None), expected)


def test_a_query_that_sees_nothing_gets_zeros(kernel: str) -> None:
    query, key, value = case(2, 1, 300, 16, 16)
    mask = torch.ones(2, 1, 1, 300, dtype=torch.bool)
    mask[1] = False
    mask[0, ..., :280] = False
    made = attend(query, key, value, mask, None)
    assert not made[1].any()
    expected = attend(query[:1], key[:1, :, 280:], value[:1, :, 280:], None, None)
    torch.testing.assert_close(made[:1], expected)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_numbers_stay_broken(kernel: str, broken: float) -> None:
    query, key, value = case(2, 1, 300, 16, 16)
    key[0, 0, 270, 3] = broken
    made = attend(query, key, value, None, None)
    assert made[0].isnan().any() or not torch.isfinite(made[0]).all()
    assert torch.isfinite(made[1]).all()


def test_scores_of_any_size_are_borne(kernel: str) -> None:
    """The largest score is taken off first: the others' weights come to nothing, and nothing overflows."""
    query, key, value = case(1, 1, 50, 16, 8, batch=1)
    key[0, 0, 30] = query[0, 0, 0]
    made = attend(query * 1e4, key, value, None, 1.0)
    torch.testing.assert_close(made[0, 0], value[0, :, 30])


def test_types_that_differ_and_wide_heads_go_by_the_definition() -> None:
    query, key, value = case(2, 2, 30, 600, 16)
    torch.testing.assert_close(attend(query, key, value, None, None), defined(query, key, value, None, 600**-0.5))
    query, key, value = case(2, 2, 30, 16, 16)
    torch.testing.assert_close(attend(query, key.double(), value, None, None), defined(query, key, value, None, 0.25))


def test_it_is_nearer_to_the_truth_than_what_it_stands_for() -> None:
    query, key, value = (numbers(1, 4, n, 64, seed=n).to(torch.bfloat16) for n in (1, 300, 301))
    value = value[:, :, :300]
    truth = torch.nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    ours = attend(query, key, value, None, None).transpose(1, 2)
    errors = [float((one.double() - truth).square().mean()) for one in (ours, theirs)]
    assert errors[0] <= errors[1] * 1.01
    assert errors[0] < 1e-5 * float(truth.square().mean())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 1), (1, 4, 1, 21), (2, 4, 1, 1)])
def test_masks_are_shared_as_torch_shares_them(kernel: str, shape: tuple[int, ...]) -> None:
    query, key, value = case(4, 2, 21, 16, 16)
    mask = numbers(*shape, seed=7)
    expected = attend(query, key, value, mask.expand(2, 4, 1, 21).contiguous(), None)
    assert torch.equal(attend(query, key, value, mask, None), expected)


@pytest.mark.parametrize(
    ("shapes", "mask", "words"),
    [
        (((2, 4, 1, 16), (1, 2, 9, 16), (1, 2, 9, 16)), None, "takes one query"),
        (((2, 4, 1, 16), (2, 3, 9, 16), (2, 3, 9, 16)), None, "takes one query"),
        (((2, 4, 1, 16), (2, 2, 9, 8), (2, 2, 9, 8)), None, "takes one query"),
        (((2, 4, 1, 16), (2, 2, 9, 16), (2, 2, 8, 16)), None, "takes one query"),
        (((2, 4, 3, 16), (2, 2, 9, 16), (2, 2, 9, 16)), None, "takes one query"),
        (((2, 4, 1, 16), (2, 2, 9, 16), (2, 2, 9, 16)), (2, 1, 1, 8), "says nothing of scores"),
        (((2, 4, 1, 16), (2, 2, 9, 16), (2, 2, 9, 16)), (3, 1, 1, 9), "says nothing of scores"),
        (((2, 4, 1, 16), (2, 2, 9, 16), (2, 2, 9, 16)), (2, 9), "says nothing of scores"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    shapes: tuple[tuple[int, ...], ...], mask: tuple[int, ...] | None, words: str
) -> None:
    query, key, value = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ShapeError, match=words):
        attend(query, key, value, None if mask is None else torch.zeros(mask), None)


@pytest.mark.parametrize("place", range(4))
def test_tensors_that_lie_elsewhere_are_refused(place: int) -> None:
    given = [numbers(1, 2, 1, 8), numbers(1, 2, 5, 8), numbers(1, 2, 5, 8), torch.ones(1, 1, 1, 5, dtype=torch.bool)]
    query, key, value, mask = (one.to("meta") if number == place else one for number, one in enumerate(given))
    with pytest.raises(ShapeError, match="on the CPU, got tensors on meta"):
        attend(query, key, value, mask, None)


def test_of_no_sequence_nothing_is_made() -> None:
    query, key, value = case(4, 2, 9, 16, 8, batch=0)
    assert attend(query, key, value, None, None).shape == (0, 1, 4, 8)


def test_the_kernel_is_what_runs() -> None:
    if codec.native() is not None:
        assert on_torch() is not None

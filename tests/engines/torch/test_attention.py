"""One token attends to those before it as torch's own attention has it, and as a sum over numbers has it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine under test")
transformers = pytest.importorskip("transformers", reason="the engine under test")

from tersor.engines.torch import attention  # noqa: E402
from tersor.engines.torch.attention import attend_by_products, attended  # noqa: E402

SIZES = {
    "vocab_size": 120, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 1) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(query: Any, key: Any, value: Any, mask: Any, scaling: float) -> Any:
    """One number after the other, in float64."""
    batch, heads = query.shape[:2]
    made = torch.zeros(batch, 1, heads, value.shape[3], dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            mine = head // (heads // key.shape[1])
            logits = []
            for token in range(key.shape[2]):
                score = sum(float(q) * float(k) for q, k in zip(query[b, head, 0], key[b, mine, token], strict=True))
                seen = True if mask is None else mask[b % len(mask), head % mask.shape[1], 0, token]
                added = 0.0 if seen is True or (mask.dtype == torch.bool and seen) else float("-inf")
                added = float(seen) if mask is not None and mask.dtype != torch.bool else added
                logits.append(score * scaling + added)
            top = max(logits)
            weights = [math.exp(one - top) for one in logits]
            for token, weight in enumerate(weights):
                made[b, 0, head] += weight / sum(weights) * value[b, mine, token].double()
    return made


def masks() -> dict[str, Any]:
    seen = numbers(2, 1, 1, 5, seed=4) > -0.5
    seen[..., -1] = True
    return {
        "none": None,
        "of sequences": seen,
        "of all": seen[:1],
        "of heads": (numbers(2, 4, 1, 5, seed=5) > -1) | torch.tensor([0, 0, 0, 0, 1], dtype=torch.bool),
        "of numbers": numbers(2, 1, 1, 5, seed=6),
    }


@pytest.mark.parametrize("kind", list(masks()))
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_it_is_the_sum_that_attention_is(kind: str, key_heads: int) -> None:
    query, key, value = numbers(2, 4, 1, 8), numbers(2, key_heads, 5, 8, seed=2), numbers(2, key_heads, 5, 6, seed=3)
    mask = masks()[kind]
    made = attended(query, key, value, mask, 0.3)
    assert made.shape == (2, 1, 4, 6)
    torch.testing.assert_close(made.double(), by_hand(query, key, value, mask, 0.3), rtol=1e-5, atol=1e-6)


def test_it_is_nearer_to_the_truth_than_what_it_stands_for() -> None:
    query, key, value = (numbers(1, 4, n, 64, seed=n).to(torch.bfloat16) for n in (1, 300, 301))
    value = value[:, :, :300]
    truth = torch.nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    ours = attended(query, key, value, None, None).transpose(1, 2)
    errors = [float((one.double() - truth).square().mean()) for one in (ours, theirs)]
    assert errors[0] <= errors[1] * 1.01
    assert errors[0] < 1e-5 * float(truth.square().mean())


def model(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **more})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def generated(net: Any, dtype: Any) -> Any:
    """Logits of the tokens that two prompts of different length go on with."""
    ids = torch.tensor([[0, 0, 3, 99, 42, 7], [1, 2, 3, 4, 5, 6]])
    seen = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    made = net.to(dtype).generate(
        ids, attention_mask=seen, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(made.logits)


@pytest.mark.parametrize(
    ("kind", "more"), [("llama", {}), ("mistral", {"sliding_window": 4}), ("qwen2", {"num_key_value_heads": 4})]
)
def test_models_say_the_same(kind: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generated(model(kind, **more), torch.float32)
    counted: list[int] = []
    attend = attention.attended

    def counting(*given: Any) -> Any:
        counted.append(given[0].shape[2])
        return attend(*given)

    monkeypatch.setattr(attention, "attended", counting)
    net = model(kind, **more)
    assert attend_by_products(net)
    torch.testing.assert_close(generated(net, torch.float32), expected, rtol=1e-4, atol=1e-5)
    assert counted == [1] * 10  # two layers, five tokens behind the prompt's own


def test_a_model_that_was_asked_for_another_attention_keeps_it() -> None:
    net = model("llama", attn_implementation="eager")
    assert not attend_by_products(net)
    assert net.config._attn_implementation == "eager"


def test_gradients_go_through_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attended", lambda *_: pytest.fail("not for gradients"))
    net = model("llama")
    attend_by_products(net)
    with torch.enable_grad():
        net(torch.tensor([[3]])).logits.sum().backward()
    assert net.lm_head.weight.grad is not None

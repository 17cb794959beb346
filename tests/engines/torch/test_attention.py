"""Models of transformers attend with our kernel, and say what they said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine under test")
transformers = pytest.importorskip("transformers", reason="the engine under test")

from tersor.engines.torch import attention  # noqa: E402
from tersor.engines.torch.attention import attend_by_kernel  # noqa: E402

SIZES = {
    "vocab_size": 120, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


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
    attend = attention.attend  # type: ignore[attr-defined]  # as it is called there

    def counting(*given: Any) -> Any:
        counted.append(given[0].shape[2])
        return attend(*given)

    monkeypatch.setattr(attention, "attend", counting)
    net = model(kind, **more)
    assert attend_by_kernel(net)
    torch.testing.assert_close(generated(net, torch.float32), expected, rtol=1e-4, atol=1e-5)
    assert counted == [1] * 10  # two layers, five tokens behind the prompt's own


def test_a_model_that_was_asked_for_another_attention_keeps_it() -> None:
    net = model("llama", attn_implementation="eager")
    assert not attend_by_kernel(net)
    assert net.config._attn_implementation == "eager"


SPARSE = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "moe_intermediate_size": 32, "index_topk": 4, "index_head_dim": 16, "index_n_heads": 2, "num_key_value_heads": 4,
}  # fmt: skip


def test_a_model_that_leaves_out_tokens_by_the_name_of_its_attention_keeps_it() -> None:
    if "deepseek_v32" not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers has no DeepSeek-V3.2")
    net = model("deepseek_v32", **SPARSE)
    ids = torch.arange(3, 23)[None]
    before = net(ids).logits
    assert not attend_by_kernel(net)
    assert torch.equal(net(ids).logits, before)


def test_gradients_go_through_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", lambda *_: pytest.fail("not for gradients"))
    net = model("llama")
    attend_by_kernel(net)
    with torch.enable_grad():
        net(torch.tensor([[3]])).logits.sum().backward()
    assert net.lm_head.weight.grad is not None

"""The clients that people have talk to the gateway, with real engines behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .conftest import Live

openai = pytest.importorskip("openai", reason="is a client: pip install openai")
tritonclient = pytest.importorskip("tritonclient.http", reason="is a client: pip install 'tritonclient[http]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the clients' own libraries
CHAT: list[Any] = [{"role": "user", "content": "def main("}]


@pytest.fixture
def client(gateway: Live) -> Any:
    with openai.OpenAI(base_url=f"{gateway.address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def triton(gateway: Live) -> Any:
    found = tritonclient.InferenceServerClient(gateway.address.removeprefix("http://"))
    yield found
    found.close()


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def test_chat_answers_and_says_what_it_cost(client: Any) -> None:
    made = client.chat.completions.create(
        model="demo", messages=CHAT, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    choice = made.choices[0]
    assert made.model == "demo"
    assert choice.finish_reason == "length"
    assert made.usage.completion_tokens == 8
    assert len(choice.logprobs.content) == 8
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in choice.logprobs.content)
    assert "".join(one.token for one in choice.logprobs.content) == choice.message.content


def test_a_stream_is_the_answer_in_parts(client: Any) -> None:
    whole = client.chat.completions.create(model="demo", messages=CHAT, max_tokens=24, temperature=0)
    events = list(
        client.chat.completions.create(
            model="demo",
            messages=CHAT,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == 24
    assert len(events) > 10


def test_completions_have_logprobs_in_lists(client: Any) -> None:
    made = client.completions.create(model="demo", prompt="def f(x):", max_tokens=6, temperature=0, logprobs=3)
    found = made.choices[0].logprobs
    assert "".join(found.tokens) == made.choices[0].text
    assert len(found.token_logprobs) == len(found.text_offset) == 6
    assert all(len(one) == 3 for one in found.top_logprobs)


def test_the_same_seed_gives_the_same_answer(client: Any) -> None:
    texts = {
        client.completions.create(model="demo", prompt="import", max_tokens=12, temperature=1.5, seed=7).choices[0].text
        for _ in range(3)
    }
    assert len(texts) == 1


def test_errors_are_those_of_the_protocol(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'other'; there are demo"):
        client.chat.completions.create(model="other", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="'temperature' must be a number from 0 to 2"):
        client.chat.completions.create(model="demo", messages=CHAT, temperature=9)
    with pytest.raises(openai.BadRequestError, match="unknown parameter 'grammar'"):
        client.chat.completions.create(model="demo", messages=CHAT, extra_body={"grammar": "root ::= ("})
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        client.completions.create(model="demo", prompt="word " * 2000, max_tokens=1)


def test_triton_sends_and_gets_bytes_by_default(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("twice")
    assert triton.get_model_metadata("twice")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    given = tritonclient.InferInput("x", [4, 3], "FP32")
    given.set_data_from_numpy(values)
    np.testing.assert_array_equal(triton.infer("twice", [given]).as_numpy("y"), 2 * values)
    zipped = triton.infer("twice", [given], request_compression_algorithm="gzip")
    np.testing.assert_array_equal(zipped.as_numpy("y"), 2 * values)


def test_triton_sends_and_gets_json(triton: Any) -> None:
    values = np.arange(3, dtype=np.float32).reshape(1, 3)
    given = tritonclient.InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(values, binary_data=False)
    wanted = tritonclient.InferRequestedOutput("y", binary_data=False)
    found = triton.infer("twice", [given], outputs=[wanted], request_id="seven")
    np.testing.assert_array_equal(found.as_numpy("y"), 2 * values)
    assert found.get_response()["id"] == "seven"
    assert triton.get_model_repository_index() == [{"name": "twice", "version": "1", "state": "READY", "reason": ""}]


def test_triton_is_told_what_is_wrong(triton: Any) -> None:
    given = tritonclient.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with pytest.raises(tritonclient.InferenceServerException, match=r"x: shape \[-1, 3\] is wanted, not \[1, 2\]"):
        triton.infer("twice", [given])

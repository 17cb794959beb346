"""A gateway whose engines are another gateway, in a process of its own: answers, keys, its death and its return."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import YAML, Live, live
from .test_faults import BODY, asked, metric, until

SECRET = "far away"
BACK = YAML + f"keys:\n  - {{name: front, sha256: {hashlib.sha256(SECRET.encode()).hexdigest()}, per_minute: 100000}}\n"
FRONT = """
models:
  chat:
    primary: far
    fallback: near
    variants:
      far: {engine: openai, url: "URL/v1", model: demo, key_env: FAR_KEY, connect_s: 2, answer_s: 20}
      near: {engine: llama.cpp, path: full.gguf, context: 512}
  doubled:
    primary: far
    variants:
      far: {engine: v2, url: "URL", model: twice, key_env: FAR_KEY, connect_s: 2, answer_s: 20}
"""
ONES = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
CHAT = {"messages": [{"role": "user", "content": "def main("}], "max_tokens": 8, "temperature": 0}
RIGHT = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture(scope="module")
def back(deployed: Callable[[str], Path]) -> Iterator[Live]:
    with live(deployed(BACK)) as found:
        yield found


@pytest.fixture(scope="module")
def front(back: Live, deployed: Callable[[str], Path]) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAR_KEY", SECRET)
        with live(deployed(FRONT.replace("URL", back.address))) as found:
            yield found


def near(made: Any) -> Any:
    """An answer without what is new in each."""
    made["usage"].pop("prompt_tokens_details", None)  # tells what was asked before
    return {key: value for key, value in made.items() if key not in ("id", "created", "model")}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", BODY),
        ("/v1/completions", {**BODY, "logprobs": 2}),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3}),
        ("/v1/chat/completions", CHAT),
    ],
)
def test_an_answer_from_afar_is_the_answer(path: str, body: dict[str, Any], back: Live, front: Live) -> None:
    status, made, headers = asked(front.address, path, {**body, "model": "chat"})
    assert (status, headers["x-tersor-variant"]) == (200, "far"), made
    direct = asked(back.address, path, {**body, "model": "demo"}, headers=RIGHT)[1]
    assert near(made) == near(direct)
    assert made["model"] == "chat"


def test_a_stream_from_afar_is_the_answer_in_parts(front: Live) -> None:
    whole = asked(front.address, "/v1/chat/completions", {**CHAT, "model": "chat"})[1]
    openai = pytest.importorskip("openai", reason="is a client: pip install openai")
    with openai.OpenAI(base_url=f"{front.address}/v1", api_key="none", max_retries=0) as client:
        events = list(
            client.chat.completions.create(**CHAT, model="chat", stream=True, stream_options={"include_usage": True})
        )
    texts = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert events[-1].usage.completion_tokens == 8


def test_tensors_from_afar_are_the_same(front: Live) -> None:
    status, made, headers = asked(front.address, "/v2/models/doubled/infer", ONES)
    assert (status, headers["x-tersor-variant"]) == (200, "far"), made
    assert made["outputs"][0]["data"] == [2, 4, 6]
    told = asked(front.address, "/v2/models/doubled")[1]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert told["platform"] == "onnxruntime_onnx"


def test_a_request_that_is_wrong_is_refused_from_afar(front: Live) -> None:
    status, made, _ = asked(front.address, "/v1/completions", {**BODY, "model": "chat", "prompt": "word " * 2000})
    assert status == 400
    assert "exceeds the available context size" in made["error"]["message"]


def test_while_it_is_away_the_fallback_answers_and_it_is_found_again(deployed: Callable[[str], Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAR_KEY", SECRET)
        with live(deployed(BACK)) as back:
            port = back.address.rpartition(":")[2]
            with live(deployed(FRONT.replace("URL", back.address))) as front:
                body = {**BODY, "model": "chat"}
                assert asked(front.address, "/v1/completions", body)[2]["x-tersor-variant"] == "far"
                back.process.send_signal(signal.SIGKILL)
                back.process.wait()
                status, _, headers = asked(front.address, "/v1/completions", body)
                assert (status, headers["x-tersor-variant"], headers["x-tersor-fallback"]) == (200, "near", "error")
                assert asked(front.address, "/v2/models/doubled/infer", ONES)[0] == 503
                assert asked(front.address, "/readyz")[1]["models"] == ["doubled"]
                assert metric(front.address, 'tersor_engine_ready{model="chat",variant="far"}') == 0
                with live(deployed(BACK), "--port", port):
                    until(lambda: asked(front.address, "/readyz")[0] == 200, 40)
                    until(lambda: asked(front.address, "/v1/completions", body)[2]["x-tersor-variant"] == "far", 40)
                    assert asked(front.address, "/v2/models/doubled/infer", ONES)[0] == 200


def test_a_server_that_is_away_at_the_start_keeps_nobody_waiting(deployed: Callable[[str], Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAR_KEY", SECRET)
        with live(deployed(FRONT.replace("URL", "http://127.0.0.1:9"))) as front:
            status, _, headers = asked(front.address, "/v1/completions", {**BODY, "model": "chat"})
            assert (status, headers["x-tersor-variant"]) == (200, "near")
            assert asked(front.address, "/v2/models/doubled/infer", ONES)[0] == 503
            assert asked(front.address, "/readyz")[0] == 503

"""A model of Hugging Face form in an engine's process says what transformers says, and no more than was asked for."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tersor
from tersor import reference_model
from tersor.containers.hf.writer import write_checkpoint
from tersor.core.errors import EngineError
from tersor.core.tensor import QuantizedTensor
from tersor.deploy.running.supervised import Patience, RequestError, Running
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.formats import get
from tersor.models.quantized_checkpoint import open_quantized

torch = pytest.importorskip("torch", reason="runs the model: pip install 'tersor[torch]'")
transformers = pytest.importorskip("transformers", reason="runs the model: pip install 'tersor[torch]'")

PROMPT = "def read_file(path):\n    with open("
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
PATIENCE = Patience(start=120, silence=1000, cancel=20)


class Asking:
    """An engine, and the loop that it lives on."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._runner = asyncio.Runner()
        given = {"path": str(folder), "threads": 1, "slots": 2, "context": 2048, **options}
        self.engine = Running("model", "transformers", given, PATIENCE)

    def __enter__(self) -> Asking:
        try:
            self._runner.run(self.engine.start())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.engine.close())
        self._runner.close()

    def parts(self, operation: str = "completions", **body: Any) -> list[dict[str, Any]]:
        async def scene() -> list[dict[str, Any]]:
            async with asyncio.timeout(60):
                return [part async for part, _ in self.engine.run({"operation": operation, "body": body})]

        return self._runner.run(scene())

    def one(self, operation: str = "completions", **body: Any) -> dict[str, Any]:
        (found,) = self.parts(operation, **body)
        return found

    def run(self, scene: Any) -> Any:
        return self._runner.run(scene)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that comes with tersor, with a chat template."""
    made = tmp_path_factory.mktemp("model") / "chatty"
    shutil.copytree(reference_model.PATH, made, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    settings = json.loads((made / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Asking]:
    with Asking(folder) as found:
        yield found


@pytest.fixture(scope="module")
def greedy(folder: Path) -> tuple[list[int], list[int], Any]:
    """Tokens of the prompt, the tokens that transformers itself makes of it, and the tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    made = net.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids))
    return ids[0].tolist(), made[0, ids.shape[1] :].tolist(), tokenizer


def test_greedy_tokens_are_those_of_transformers(model: Asking, greedy: Any) -> None:
    prompt, tokens, tokenizer = greedy
    made = model.one(prompt=PROMPT, max_tokens=24, temperature=0, logprobs=5)
    choice = made["choices"][0]
    assert choice["text"] == tokenizer.decode(tokens)
    assert [one["id"] for one in choice["logprobs"]["content"]] == tokens
    assert "".join(one["token"] for one in choice["logprobs"]["content"]) == choice["text"]
    assert made["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 24, "total_tokens": len(prompt) + 24}
    assert choice["finish_reason"] == "length"
    assert model.one(prompt=prompt, max_tokens=24, temperature=0)["choices"][0]["text"] == choice["text"]


def test_logprobs_are_those_of_the_logits(model: Asking, greedy: Any, folder: Path) -> None:
    prompt, tokens, _ = greedy
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        logits = net(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].float()
    values, places = torch.log_softmax(logits, -1).topk(3)
    made = model.one(prompt=prompt, max_tokens=24, temperature=0, logprobs=3)["choices"][0]["logprobs"]["content"]
    for one, row, ids in zip(made, values.tolist(), places.tolist(), strict=True):
        # bfloat16: with and without a cache sums are rounded otherwise.
        assert one["logprob"] == pytest.approx(row[0], abs=0.1)
        assert [top["logprob"] for top in one["top_logprobs"]] == pytest.approx(row, abs=0.1)
        assert one["top_logprobs"][0]["id"] == ids[0]


def test_a_stream_is_the_answer_in_parts(model: Asking) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "logprobs": 2}
    whole = model.one(**body)
    *parts, last = model.parts(**body, stream=True, stream_options={"include_usage": True})
    choices = [part["choices"][0] for part in parts]
    assert "".join(one["text"] for one in choices) == whole["choices"][0]["text"]
    records = [record for one in choices for record in (one["logprobs"] or {"content": []})["content"]]
    assert records == whole["choices"][0]["logprobs"]["content"]
    assert [one["finish_reason"] for one in choices] == [None] * (len(choices) - 1) + ["length"]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len(parts) > 10


def test_a_chat_goes_through_the_template_of_the_model(model: Asking) -> None:
    messages = [{"role": "system", "content": [{"type": "text", "text": "be"}]}, {"role": "user", "content": "def f("}]
    made = model.one("chat/completions", messages=messages, max_tokens=8, temperature=0)
    text = "system: be\nuser: def f(\nassistant:"
    assert made["choices"][0]["message"] == {
        "role": "assistant",
        "content": model.one(prompt=text, max_tokens=8, temperature=0)["choices"][0]["text"],
    }
    parts = model.parts("chat/completions", messages=messages, max_tokens=8, temperature=0, stream=True)
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    said = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert said == made["choices"][0]["message"]["content"]


def test_a_stop_word_ends_the_text_before_it(model: Asking) -> None:
    whole = model.one(prompt=PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"]
    stop = whole[9:12]
    for stream in (False, True):
        parts = model.parts(prompt=PROMPT, max_tokens=24, temperature=0, stop=[stop, "never said"], stream=stream)
        choices = [part["choices"][0] for part in parts]
        assert "".join(one["text"] for one in choices) == whole[: whole.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"


def test_seeds_choices_and_the_token_that_ends_a_text(model: Asking, greedy: Any) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 1.5, "seed": 7, "n": 2}
    first, second = model.one(**body), model.one(**body)
    assert first == second
    texts = [one["text"] for one in first["choices"]]
    assert texts[0] != texts[1]
    assert [one["index"] for one in first["choices"]] == [0, 1]
    assert first["usage"]["completion_tokens"] == 24
    ended = model.one(prompt=PROMPT, max_tokens=12, temperature=0, logit_bias={"0": 100})
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")


@pytest.mark.parametrize(
    ("operation", "body", "words"),
    [
        ("embeddings", {"input": "a"}, "does not do embeddings"),
        ("completions", {"prompt": "word " * 2000}, "exceeds the available context size of 512"),
        ("completions", {"prompt": [4096]}, "invalid tokens"),
        ("completions", {"prompt": [True]}, "invalid tokens"),
        ("completions", {"prompt": "a", "stop": [""]}, "'stop' must be"),
        ("completions", {"prompt": "a", "stop": ["x"] * 17}, "'stop' may have 16"),
        ("completions", {"prompt": "a", "logit_bias": {"4096": 1}}, "'logit_bias' must map"),
        ("completions", {"prompt": "a", "logit_bias": {"1": 1e9}}, "'logit_bias' must map"),
        ("chat/completions", {"messages": [{"role": "user", "content": 7}]}, "content of a message"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": []}, "does not know tools"),
    ],
)
def test_what_cannot_be_answered_is_refused(operation: str, body: dict[str, Any], words: str, model: Asking) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        model.parts(operation, **body)
    assert caught.value.status == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_cancelled_stops_computing(stream: bool, model: Asking) -> None:
    async def scene() -> None:
        body = {"prompt": PROMPT, "max_tokens": 470, "temperature": 1, "seed": 1, "stream": stream, "n": 8}
        async with asyncio.timeout(60):
            starts = model.engine.starts
            async with aclosing(model.engine.run({"operation": "completions", "body": body})) as parts:
                reading = asyncio.create_task(anext(parts))
                await asyncio.sleep(0.3)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            while model.engine.active:
                await asyncio.sleep(0.01)
            assert (model.engine.starts, model.engine.state) == (starts, "ready")

    model.run(scene())


def test_many_at_once_say_what_each_says_alone(model: Asking) -> None:
    prompts = ["import os", "class A:", "for i in", "x = {"]
    alone = [model.one(prompt=one, max_tokens=8, temperature=0)["choices"][0]["text"] for one in prompts]

    async def ask(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0}
        (found,) = [part async for part, _ in model.engine.run({"operation": "completions", "body": body})]
        return str(found["choices"][0]["text"])

    async def scene() -> list[str]:
        return list(await asyncio.gather(*map(ask, prompts)))

    assert model.run(scene()) == alone


@pytest.mark.slow
@pytest.mark.parametrize("container", ["compressed-tensors", "gptq"])
def test_a_checkpoint_in_integers_says_what_its_decoded_weights_say(tmp_path: Path, container: str) -> None:
    made = tmp_path / "made"
    tersor.quantize(reference_model.PATH, "int4-g32", output=made, container=container)
    net = transformers.AutoModelForCausalLM.from_pretrained(reference_model.PATH, dtype=torch.float32)
    with closing(open_quantized(made)) as checkpoint:
        for name in checkpoint.quantized_names:
            net.get_parameter(name).data.copy_(torch.from_numpy(checkpoint.read(name)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    said = net.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids))
    with Asking(made) as model:
        assert model.one(prompt=PROMPT, max_tokens=6, temperature=0)["choices"][0]["text"] == tokenizer.decode(
            said[0, ids.shape[1] :]
        )


def test_a_checkpoint_whose_output_matrix_is_quantized_answers(folder: Path, tmp_path: Path) -> None:
    source, made, fmt = tmp_path / "source", tmp_path / "made", get("int4-g32-sym-f16")
    shutil.copytree(folder, source)
    config = transformers.AutoConfig.from_pretrained(folder, tie_word_embeddings=False, num_hidden_layers=1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    with closing(Checkpoint(*weight_files(source)[:2])) as checkpoint:
        formats = {name: fmt for name in checkpoint.tensors if name.endswith(("proj.weight", "lm_head.weight"))}
        weights = ((name, np.asarray(checkpoint.read(name), np.float32)) for name in formats)
        tensors = ((name, QuantizedTensor(fmt, w.shape, fmt.encode(w))) for name, w in weights)
        write_checkpoint(source, checkpoint, formats, tensors, made, name="gptq")
    with Asking(made) as model:
        assert model.one(prompt=PROMPT, max_tokens=1, temperature=0)["usage"]["completion_tokens"] == 1


def test_a_folder_without_safetensors_is_no_model(folder: Path, tmp_path: Path) -> None:
    """A pickle beside the configuration is not opened."""
    made = tmp_path / "pickled"
    shutil.copytree(folder, made)
    (made / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.zeros(1)}, made / "pytorch_model.bin")
    with pytest.raises(EngineError, match=r"safetensors"), Asking(made):
        pass


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no config.json; engine transformers runs folders"), Asking(tmp_path):
        pass

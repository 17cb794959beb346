"""transformers inside an engine's process: a causal language model of Hugging Face form, on the CPU.

Several requests are answered side by side, each token by itself: what a model says in full precision, and no race for
speed. Weights are read from safetensors alone, never from a pickle, and no code of a model's folder is run.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tersor.core.errors import MissingError
from tersor.deploy.running.causal.asking import Asked, asked
from tersor.deploy.running.causal.pieces import Held, Pieces
from tersor.deploy.running.causal.sampling import Draw
from tersor.deploy.running.worker import Emit, RefusedError
from tersor.engines.torch.attention import attend_by_kernel
from tersor.engines.torch.checkpoints import is_quantized, load_quantized, vocabulary_size

__all__ = ["opened"]

PROMPT_STEP = 256
"""Tokens of a prompt between two looks at whether anybody still waits."""
WAIT_S = 0.1


class _Cancelled(Exception):  # noqa: N818 (an end, and no error)
    """Nobody waits for the answer any more."""


@dataclass
class _Text:
    """One choice, as far as it is made."""

    index: int
    tokens: int = 0
    text: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    reason: str = "length"


class _Causal:
    """Requests are those of OpenAI: {"operation", "body"}; parts are replies or, streamed, chunks."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            import torch  # noqa: PLC0415 (an optional engine, in this process alone)
            import transformers  # noqa: PLC0415
        except ImportError as error:
            raise MissingError(f"engine transformers needs {error.name}: pip install 'tersor[torch]'") from error
        folder = Path(options["path"])
        if not (folder / "config.json").is_file():
            raise MissingError(f"{folder.name}: no config.json; engine transformers runs folders of Hugging Face form")
        torch.set_num_threads(int(options.get("threads", 1)))
        self._torch = torch
        source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
        if is_quantized(folder):
            self._model = load_quantized(folder)  # on integers, as the file has them
        else:
            load = transformers.AutoModelForCausalLM.from_pretrained
            self._model = load(folder, dtype="auto", use_safetensors=True, **source).eval()
            attend_by_kernel(self._model)
        takes = inspect.signature(self._model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        text = self._model.config.get_text_config()
        self._vocabulary = vocabulary_size(self._model)
        limit = getattr(text, "max_position_embeddings", None)
        self._context = min(int(options.get("context", 2048)), int(limit or 1 << 30))
        self._ends = self._end_tokens()
        slots = int(options.get("slots", 4))
        self._slots = threading.Semaphore(slots)
        self.facts = {
            "slots": slots,
            "context": self._context,
            "version": f"transformers {importlib.metadata.version('transformers')}",
        }

    def _end_tokens(self) -> frozenset[int]:
        given = self._model.generation_config.eos_token_id
        listed = given if isinstance(given, list) else [given]
        return frozenset(int(token) for token in (*listed, self._tokenizer.eos_token_id) if token is not None)

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> None:
        """Answer one request."""
        del payload
        wanted = asked(request["operation"], request["body"], self._vocabulary)
        prompt = self._prompt(wanted)
        try:
            with self._place(emit), self._torch.inference_mode():
                made = [self._choice(wanted, prompt, index, emit) for index in range(wanted.choices)]
        except _Cancelled:
            return
        usage = _usage(len(prompt), sum(one.tokens for one in made))
        if not wanted.is_streamed:
            emit({"object": _object(wanted), "choices": [_whole(wanted, one) for one in made], "usage": usage}, b"")
        elif wanted.tells_usage:
            emit({"object": _object(wanted), "choices": [], "usage": usage}, b"")

    def close(self) -> None:
        """Nothing: the process ends."""

    def _prompt(self, wanted: Asked) -> list[int]:
        given = wanted.prompt
        if wanted.is_chat:
            if not self._tokenizer.chat_template:
                raise RefusedError("the model has no chat template: ask for completions")
            try:
                text = self._tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=False)
            except Exception as error:  # whatever the template of a model raises is about these messages
                raise RefusedError(f"the model's chat template refuses the messages: {str(error)[:200]}") from error
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self._tokenizer(given)["input_ids"] if isinstance(given, str) else given
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise RefusedError("the prompt is empty")
        if len(ids) >= self._context:
            raise RefusedError(f"{len(ids)} tokens: the request exceeds the available context size of {self._context}")
        return [int(token) for token in ids]

    @contextmanager
    def _place(self, emit: Emit) -> Iterator[None]:
        """Hold a slot; _Cancelled where nobody waits any more before there is one."""
        while not self._slots.acquire(timeout=WAIT_S):
            if emit.is_cancelled():
                raise _Cancelled
        try:
            yield
        finally:
            self._slots.release()

    def _choice(self, wanted: Asked, prompt: list[int], index: int, emit: Emit) -> _Text:
        """Make one text, and stream it where that is asked for."""
        made, held, pieces = _Text(index), Held(wanted.stops), Pieces(self._decode, prompt)
        seed = wanted.sampling.seed
        draw = Draw(wanted.sampling if seed is None else replace(wanted.sampling, seed=seed + index), self._vocabulary)
        room = self._context - len(prompt)
        limit = room if wanted.tokens is None else min(room, wanted.tokens)
        if wanted.is_streamed and wanted.is_chat:
            emit(_chunk(wanted, index, {"role": "assistant", "content": ""}), b"")

        def told(text: str, records: list[dict[str, Any]]) -> None:
            if not wanted.is_streamed:
                made.text += text
                made.records += records
            elif text or records:
                emit(_chunk(wanted, index, {"content": text}, records), b"")

        for token, logits in self._tokens(prompt, draw, emit):
            made.tokens += 1
            is_end = token in self._ends
            piece = "" if is_end else pieces.add(token, is_last=made.tokens == limit)
            told(*held.add(piece, self._record(token, piece, logits, wanted.top)))
            if is_end or held.is_stopped:
                made.reason = "stop"
            if is_end or held.is_stopped or made.tokens == limit:
                break
        if not held.is_stopped:
            told(*held.rest())
        if wanted.is_streamed:
            emit(_chunk(wanted, index, {}, reason=made.reason), b"")
        return made

    def _tokens(self, prompt: list[int], draw: Draw, emit: Emit) -> Iterator[tuple[int, Any]]:
        """Yield token after token with the logits that it was drawn from, without end."""
        cache, waiting = None, prompt
        while True:
            for start in range(0, len(waiting), PROMPT_STEP):
                if emit.is_cancelled():
                    raise _Cancelled
                ids = self._torch.tensor([waiting[start : start + PROMPT_STEP]])
                result = self._model(ids, past_key_values=cache, use_cache=True, **self._last)
                cache = result.past_key_values
            logits = result.logits[0, -1].float()
            if not self._torch.isfinite(logits.max()):
                raise ArithmeticError("the model's logits have NaN or infinity")
            token = draw.next(logits)
            yield token, logits
            waiting = [token]

    def _record(self, token: int, piece: str, logits: Any, top: int | None) -> dict[str, Any]:
        """A token with its probability, nats, before any temperature, and the likeliest ones beside it."""
        made: dict[str, Any] = {"id": token, "token": piece, "bytes": list(piece.encode(errors="replace"))}
        if top is None:
            return made
        values = self._torch.log_softmax(logits, -1)
        found = self._torch.topk(values, min(max(top, 1), self._vocabulary))
        likely = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        others = [{**self._named(other), "logprob": value} for other, value in likely][:top]
        return {**made, "logprob": float(values[token]), "top_logprobs": others}

    def _named(self, token: int) -> dict[str, Any]:
        word = self._decode([token])
        return {"id": token, "token": word, "bytes": list(word.encode(errors="replace"))}

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _object(wanted: Asked) -> str:
    if not wanted.is_chat:
        return "text_completion"
    return "chat.completion.chunk" if wanted.is_streamed else "chat.completion"


def _chunk(
    wanted: Asked, index: int, delta: dict[str, Any], records: Sequence[dict[str, Any]] = (), reason: str | None = None
) -> dict[str, Any]:
    said = {"delta": delta} if wanted.is_chat else {"text": delta.get("content", "")}
    choice = {"index": index, **said, "finish_reason": reason, "logprobs": _logprobs(wanted, records)}
    return {"object": _object(wanted), "choices": [choice]}


def _whole(wanted: Asked, made: _Text) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": made.text}} if wanted.is_chat else {"text": made.text}
    told = {"finish_reason": made.reason, "logprobs": _logprobs(wanted, made.records)}
    return {"index": made.index, **said, **told}


def _logprobs(wanted: Asked, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": list(records)} if wanted.top is not None and records else None


def _usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def opened(options: dict[str, Any]) -> _Causal:
    """Load the folder that `path` names; MissingError without torch, transformers or a config.json there."""
    return _Causal(options)

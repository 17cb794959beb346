"""llama.cpp's own server inside an engine's process: batches, slots, templates, sampling and logprobs are its work."""

from __future__ import annotations

import json
import secrets
from typing import Any

from tersor.deploy.running.worker import BAD_REQUEST, FAILED, Emit, RefusedError

__all__ = ["opened"]

NOT_SUPPORTED = 501
"""What it says of embeddings where it was not started for them: the request is wrong, and it is well."""
OF_REQUESTS = ("parse", "not supported")
"""Words of errors that it raises of a request before anything runs, and not of itself."""
OPERATIONS = ("completions", "chat/completions", "embeddings")


class _Llama:
    """Requests are those of OpenAI: {"operation", "body"}; parts are its replies or, streamed, its chunks."""

    def __init__(self, options: dict[str, Any]) -> None:
        import xllamacpp  # noqa: PLC0415 (an optional engine, in this process alone)

        settings = xllamacpp.CommonParams()
        settings.model.path = options["path"]
        settings.n_parallel = int(options.get("slots", 4))
        settings.n_ctx = int(options.get("context", 2048)) * settings.n_parallel
        settings.cpuparams.n_threads = int(options.get("threads", 1))
        settings.embedding = bool(options.get("embeddings", False))
        # By itself it keeps prompts that have left their slot, up to 8 GiB: memory that no gate has seen.
        settings.cache_ram_mib = 0
        settings.api_keys = [secrets.token_hex(16)]  # it listens on a port too, and nobody shall ask it there
        self._server = xllamacpp.Server(settings)
        self.facts = {"slots": settings.n_parallel, "context": settings.n_ctx // settings.n_parallel}

    def run(self, request: dict[str, Any], payload: bytes, emit: Emit) -> None:
        """Hand a request to the server, and its words on."""
        del payload
        operation, text = request["operation"], json.dumps(request["body"])
        try:
            self._handle(operation, text, emit)
        except json.JSONDecodeError:
            raise
        except RuntimeError as error:
            if any(word in str(error) for word in OF_REQUESTS):
                raise RefusedError(str(error).split("\n", maxsplit=1)[0]) from error
            raise
        except ValueError as error:  # its word for a request that cannot be: a message without content for one
            raise RefusedError(str(error)) from error

    def _handle(self, operation: str, text: str, emit: Emit) -> None:
        if operation == "embeddings":
            _sent(self._server.handle_embeddings(text), emit)
            return
        failures: list[RefusedError] = []

        def told(answer: str) -> bool:
            try:
                return _sent(answer, emit)
            except RefusedError as refusal:
                failures.append(refusal)
                return True

        handle = self._server.handle_completions if operation == "completions" else self._server.handle_chat_completions
        handle(text, told)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Nothing: the process ends."""


def _sent(answer: str, emit: Emit) -> bool:
    """Send one reply or chunk; RefusedError where it is an error."""
    # A quotation mark inside of a text is escaped: only a key looks so. Few are errors, and long answers take time to
    # parse: the gateway does it anyway.
    if '"error":' in answer and "error" in (found := json.loads(answer)):
        error = found["error"]
        code = int(error.get("code", FAILED))
        raise RefusedError(str(error.get("message", error)), BAD_REQUEST if code == NOT_SUPPORTED else code)
    return emit(answer, b"")


def opened(options: dict[str, Any]) -> _Llama:
    """Load the GGUF that `path` names."""
    return _Llama(options)

"""llama.cpp in a child process: tokens, logits and greedy text from a real GGUF.

The engine is the prebuilt llama.cpp that the PyPI package `xllamacpp` carries, called through its C interface by
`engines/llama/`. It runs in a process of its own because it aborts on some broken files; an abort, a refusal or
a timeout becomes an EngineError with the engine's last words, and no process is left behind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, MissingError
from tersor.engines.activations import Activations
from tersor.engines.child import Child, InChild

__all__ = ["SUPPORTED", "LlamaCpp", "empty_engine"]

SUPPORTED = "2026.10.11549"
"""The xllamacpp release whose interface the worker was written against; others work if their layout agrees."""

_BATCH_BYTES = 64 << 20  # of logits held by the engine at once; larger vocabularies get smaller batches


class LlamaCpp(InChild):
    """A GGUF loaded in llama.cpp; a context manager, for one thread at a time.

    path             the GGUF, or the first file of a split one
    context          most tokens of one call of `logits`, or of prompt plus answer of `generate`; 0 serves `timed` alone
    threads          of the engine
    vocabulary_only  load the tokenizer alone: no weights are read; `logits` and `generate` are refused
    timeout_s        longest wait, in seconds, for loading and for each call

    Its attributes `vocabulary_size`, `trained_context` (tokens), `begin` (the BOS that the file wants before text, None
    for none) and `adds_end` (whether it wants an EOS after it) are what the file says.

    Runs on the CPU with a float32 KV cache and without flash attention, so that logits can be compared closely.
    Raises EngineError (refused, aborted, timed out: with the engine's last log lines) and MissingError.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int = 512,
        threads: int = 1,
        vocabulary_only: bool = False,
        timeout_s: float = 120,
    ) -> None:
        if context < 0 or threads < 1 or timeout_s <= 0:
            raise EngineError(
                f"threads and timeout_s must be positive, context not negative, got {threads}, {timeout_s}, {context}"
            )
        self.path, self.context, self.vocabulary_only = Path(path), context, vocabulary_only
        library = _library()
        if not self.path.is_file():
            raise EngineError(f"{self.path}: no such file")
        options = {
            "context": context,
            "batch_bytes": _BATCH_BYTES,
            "threads": threads,
            "vocabulary_only": vocabulary_only,
        }
        self._child = Child(
            "tersor.engines.llama.worker",
            [str(library), str(self.path), json.dumps(options)],
            subject=str(self.path),
            engine="llama.cpp",
            environment=_environment(threads),
            timeout_s=timeout_s,
            advice=_advice,
        )
        facts = self._child.greeting
        self.vocabulary_size = int(facts["vocabulary_size"])
        self.load_s = float(facts["load_s"])
        self.trained_context = int(facts["trained_context"])
        self.begin: int | None = facts["begin"]
        self.adds_end = bool(facts["adds_end"])

    def version(self) -> str:
        """The engine's name and release, as `xllamacpp 2026.10.11549`."""
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of `text`; `add_special` adds what the file says (BOS, EOS), `parse_special` reads control tokens."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"the text is not valid Unicode: {error}") from error
        ids: list[int] = self._child.call("tokenize", text=text, add_special=add_special, parse_special=parse_special)[
            "ids"
        ]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens written out; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._child.call("detokenize", ids=self._valid(ids))["text"]
        return text

    def logits(self, ids: Sequence[int], *, start: int = 0) -> Float32:
        """Logits after each token of `ids` from `start` on: [len(ids) - start, vocabulary_size] float32."""
        return next(self.slices(ids, start=start, rows=max(1, len(ids))))

    def slices(self, ids: Sequence[int], *, start: int = 0, rows: int = 512, batch: int = 0) -> Iterator[Float32]:
        """Yield what `logits` returns, `rows` rows at a time; only these are held and sent.

        batch  most tokens decoded at once, 0: as many as memory allows. It changes the order of sums, nothing else.
        Between two slices the engine may be asked for anything but logits and text to generate.
        """
        valid = self._fitting(ids, 0)
        if not 0 <= start < len(valid) or rows < 1 or batch < 0:
            raise EngineError(f"start {start}, rows {rows} and batch {batch} do not fit {len(valid)} tokens")
        position = 0
        while position < len(valid):
            end = min(len(valid), max(position, start) + rows)
            first = max(start - position, 0)
            out = np.empty((end - position - first, self.vocabulary_size), np.float32)
            self._child.call("logits", into=out, ids=valid[position:end], position=position, first=first, batch=batch)
            yield out
            position = end

    def generate(self, ids: Sequence[int], count: int, *, stop: bool = False) -> list[int]:
        """`count` greedy continuations of `ids`; with `stop`, ends early after an end-of-text token."""
        if count < 0:
            raise EngineError(f"count must not be negative, got {count}")
        made: list[int] = self._child.call("generate", ids=self._fitting(ids, count), count=count, stop=stop)["ids"]
        return made

    def trace(self, ids: Sequence[int], path: Path, *, rows: Sequence[int], inputs: bool = False) -> Activations:
        """Run `ids` from an empty cache and write activations at the positions `rows` to the file `path`.

        inputs  write what each weight was multiplied with, too
        """
        valid = self._fitting(ids, 0)
        kept = sorted({int(row) for row in rows})
        if not kept or kept[0] < 0 or kept[-1] >= len(valid):
            raise EngineError(f"rows must be positions of the {len(valid)} tokens, got {kept[:1]} … {kept[-1:]}")
        answer = self._child.call("trace", ids=valid, path=str(path.resolve()), rows=kept, inputs=inputs)
        return Activations.from_answer(path, answer)

    def timed(self, operation: str, **fields: int | Sequence[Sequence[int]]) -> dict[str, Any]:
        """One of the operations of `engines/llama/timing.py`, which time themselves."""
        return self._child.call(operation, into=None, **fields)

    def _valid(self, ids: Sequence[int]) -> list[int]:
        valid = [int(token) for token in ids]
        for token in valid:
            if not 0 <= token < self.vocabulary_size:
                raise EngineError(f"token {token} is outside the vocabulary of {self.vocabulary_size}")
        return valid

    def _fitting(self, ids: Sequence[int], more: int) -> list[int]:
        if self.vocabulary_only:
            raise EngineError(f"{self.path} was opened with vocabulary_only=True: it has no weights to run")
        valid = self._valid(ids)
        if not valid:
            raise EngineError("at least one token is needed, got none")
        if len(valid) + more > self.context:
            raise EngineError(
                f"{len(valid)} tokens and {more} to generate exceed the context of {self.context}; "
                f"open the engine with context={len(valid) + more}"
            )
        return valid


def empty_engine(*, threads: int = 1, timeout_s: float = 120) -> Child:
    """llama.cpp in a child process without a model: its memory is what every model pays."""
    return Child(
        "tersor.engines.llama.timing",
        [str(_library())],
        subject="no model",
        engine="llama.cpp",
        environment=_environment(threads),
        timeout_s=timeout_s,
        advice=_advice,
    )


def _environment(threads: int) -> dict[str, str]:
    """No debugger attached on abort, no GPU taken, no spinning threads beyond those asked for."""
    return {"GGML_NO_BACKTRACE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}


def _advice(reason: str) -> str:
    if reason.startswith("layout:"):
        return f"; xllamacpp {SUPPORTED} is supported: pip install 'xllamacpp=={SUPPORTED}'"
    return ""


def _library() -> Path:
    """The llama.cpp library inside the xllamacpp package, found without importing the package."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise MissingError("running a GGUF needs llama.cpp: pip install 'tersor[llama]'")
    folder = Path(found.origin).parent
    for pattern in ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib"):
        for candidate in sorted(folder.glob(pattern)):
            return candidate
    raise MissingError(f"{folder} holds no llama.cpp library: pip install --force-reinstall 'tersor[llama]'")

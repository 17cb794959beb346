"""What turns calibration text into ids: the checkpoint's own tokenizer, or llama.cpp for a GGUF."""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tersor.calibrate.sequences import Encoder
from tersor.core.errors import FormatError, MissingError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models import Model

__all__ = ["open_encoder"]

_PIECE = 1 << 16
"""Characters handed to a tokenizer at once: some need memory that grows with the square of the text."""
_PIECES = 8
"""Pieces encoded side by side: what the library returns is some hundred times as large as the ids in it."""


@contextmanager
def open_encoder(model: Model) -> Iterator[Encoder]:
    """Yield the encoder of `model`; MissingError where its library is not installed or it has no tokenizer."""
    for file in model.files:
        if file.suffix == ".gguf":
            with LlamaCpp(file, vocabulary_only=True) as engine:
                yield _LlamaCppEncoder(engine)
            return
    if model.folder is None:
        raise MissingError(f"{model.name} has no folder with a tokenizer to calibrate with")
    yield _CheckpointEncoder(model.folder, _begin(model))


def _begin(model: Model) -> int | None:
    """The id that llama.cpp will put before every text."""
    tokenizer = model.tokenizer
    return tokenizer.special_ids.get("bos") if tokenizer is not None and tokenizer.add_bos else None


class _LlamaCppEncoder:
    def __init__(self, engine: LlamaCpp) -> None:
        self._engine = engine
        with_ends, plain = (engine.tokenize("a", add_special=flag) for flag in (True, False))
        self.begin = with_ends[0] if len(with_ends) > len(plain) and with_ends[0] != plain[0] else None

    def encode(self, text: str) -> Sequence[int]:
        return [token for piece in _pieces(text) for token in self._engine.tokenize(piece)]

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:  # noqa: ARG002 (the protocol's)
        raise MissingError("conversations need the chat template of a checkpoint folder; a GGUF is calibrated on text")


class _CheckpointEncoder:
    def __init__(self, folder: Path, begin: int | None) -> None:
        self._folder, self.begin = folder, begin
        self._split = _fast(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
        self._whole: Any = None

    def encode(self, text: str) -> Sequence[int]:
        if self._split is not None:
            ids = array("q")
            pieces = _pieces(text)
            while batch := list(islice(pieces, _PIECES)):
                for piece in self._split.encode_batch(batch, add_special_tokens=False):
                    ids.extend(piece.ids)
            return ids
        encode = self._transformers()
        return [token for piece in _pieces(text) for token in encode(piece, add_special_tokens=False)["input_ids"]]

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        tokenizer = self._transformers()
        if not tokenizer.chat_template:
            raise MissingError("the model has no chat template for conversations: calibrate it on plain text")
        turns = [{"role": role, "content": content} for role, content in messages]
        ids = self.encode(tokenizer.apply_chat_template(turns, tokenize=False))
        return ids[1:] if ids and ids[0] == self.begin else ids

    def _transformers(self) -> Any:
        """The tokenizer of transformers: slow to import, but it knows templates and formats without tokenizer.json."""
        if self._whole is None:
            try:
                import transformers  # noqa: PLC0415 (an extra)

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the library's own, about lengths and defaults
                    self._whole = transformers.AutoTokenizer.from_pretrained(
                        self._folder, local_files_only=True, trust_remote_code=False
                    )
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise MissingError(
                    f"{self._folder.name}: transformers cannot open its tokenizer ({error}); "
                    "is it installed? pip install 'tersor[torch]'"
                ) from error
            self._whole.model_max_length = 1 << 30  # we cut sequences ourselves
        return self._whole


def _fast(path: Path) -> Any:
    try:
        import tokenizers  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingError("calibration needs the tokenizers library: pip install 'tersor[torch]'") from error
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the library raises bare Exception for a broken file
        raise FormatError(f"{path}: not a tokenizer that the tokenizers library reads ({error})") from error
    tokenizer.no_truncation()  # the file may say how long texts were in training; here it is cut by us
    tokenizer.no_padding()
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """Cut long text at line ends."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        cut = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
        end = cut if cut > start else end
        yield text[start:end]
        start = end

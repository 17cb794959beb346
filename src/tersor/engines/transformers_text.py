"""A checkpoint in transformers with its own tokenizer, as an artefact that is evaluated on text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, MissingError
from tersor.engines.transformers_lm import TransformersLm

__all__ = ["TransformersText"]


class TransformersText:
    """The checkpoint in `path`, quantized or not, with its tokenizer; for one thread at a time.

    context, name, weights, threads  most tokens of a call of `slices`; the others as for TransformersLm

    `begin` is the id that its tokenizer puts before a text, None for none; `adds_end` whether it puts one after it.
    Raises MissingError where transformers cannot load model or tokenizer, and what loading a quantized one raises.
    """

    def __init__(self, path: Path, *, context: int, name: str, weights: int, threads: int = 0) -> None:
        self.path, self.context = path, context
        self._model = TransformersLm(path, name=name, weights=weights, threads=threads)
        self._tokenizer = _tokenizer(path)
        self.vocabulary_size = self._model.vocabulary_size
        ends = self._ids("", add_special=True)
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        self.begin: int | None = begin if ends and ends[0] == begin else None
        self.adds_end = len(ends) > (self.begin is not None) and ends[-1] == end

    def version(self) -> str:
        """What computes, as TransformersLm tells it."""
        return self._model.version()

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of `text`, in which words that look like control tokens are text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"the text is not valid Unicode: {error}") from error
        return self._ids(text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens written out."""
        text: str = self._tokenizer.decode(
            [int(token) for token in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def slices(self, ids: Sequence[int], *, start: int = 0, rows: int = 512, batch: int = 0) -> Iterator[Float32]:
        """Yield logits after ids[start], ids[start + 1], …, `rows` of them at a time."""
        if len(ids) > self.context:
            raise EngineError(f"{len(ids)} tokens do not fit the context of {self.context}")
        return self._model.slices(ids, start=start, rows=rows, batch=batch)

    def _ids(self, text: str, *, add_special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special, split_special_tokens=True)["input_ids"]
        return ids


def _tokenizer(folder: Path) -> Any:
    import transformers  # noqa: PLC0415 (an extra, which loading the model has found)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, about lengths and defaults
            made = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise MissingError(
            f"{folder.name}: transformers cannot open its tokenizer ({error}); copy tokenizer.json and "
            "tokenizer_config.json of the original beside the weights"
        ) from error
    made.model_max_length = 1 << 30  # texts are cut into windows elsewhere
    return made

"""Does llama.cpp, with the artefact's vocabulary, cut text into the very tokens of the source tokenizer?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tersor.core.errors import EngineError, MissingError, TersorError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.checks.verdict import Check
from tersor.models import Model
from tersor.models.tokenizers.vocabulary import SPACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["check_tokens"]

Encode: TypeAlias = Callable[[str], list[int]]

SHOWN = 3
_AROUND = 6


@dataclass(frozen=True, slots=True)
class _Reference:
    """The source's own tokenizer: its name, its function without special tokens around the text, its added tokens."""

    name: str
    encode: Encode
    added: str = ""


def check_tokens(path: Path, source: Model, texts: Sequence[str]) -> Check:
    """Tokenize `texts` with the artefact in llama.cpp and with the tokenizer of `source`; all ids must be equal.

    Characters that the source cannot encode at all are left out of the texts. The added tokens of a tokenizer.json,
    which no text of every day holds, are a further text.
    """
    with ExitStack() as stack:
        try:
            reference = _reference(source, stack)
            texts = [*_encodable(texts, source), *([reference.added] if reference.added else [])]
            engine = stack.enter_context(LlamaCpp(path, vocabulary_only=True))
            wrong, tokens = [], 0
            for text in texts:
                expected, ids = reference.encode(text), engine.tokenize(text, parse_special=True)
                tokens += len(expected)
                if expected != ids:
                    wrong.append(_difference(text, expected, ids))
        except MissingError as error:
            return Check("tokens", "skipped", str(error))
        except (EngineError, TersorError) as error:
            return Check("tokens", "failed", "the texts cannot be tokenized", (str(error),))
    size = sum(len(text.encode()) for text in texts)
    numbers = {
        "texts": float(len(texts)),
        "bytes": float(size),
        "tokens": float(tokens),
        "texts_differing": float(len(wrong)),
    }
    if wrong:
        known = source.tokenizer.notes if source.tokenizer is not None else ()
        detail = f"{len(wrong)} of {len(texts)} texts are cut otherwise than {reference.name} does"
        return Check("tokens", "failed", detail, (*wrong[:SHOWN], *(f"known: {note}" for note in known)), numbers)
    detail = f"{tokens:,} tokens of {size / 1000:.0f} kB mixed text are those of {reference.name}"
    return Check("tokens", "passed", detail, numbers=numbers)


def _reference(source: Model, stack: ExitStack) -> _Reference:
    files = {file.name: file for file in source.files}
    if "tokenizer.json" in files:
        return _from_json(files["tokenizer.json"], source)
    if "tokenizer.model" in files:
        return _Reference("tokenizer.model", _from_model(files["tokenizer.model"]))
    for file in source.files:
        if file.suffix == ".gguf":
            return _Reference(file.name, _from_gguf(stack.enter_context(LlamaCpp(file, vocabulary_only=True))))
    raise MissingError(f"{source.name} has no tokenizer.json, tokenizer.model or GGUF to compare with")


def _from_gguf(engine: LlamaCpp) -> Encode:
    return lambda text: engine.tokenize(text, parse_special=True)


def _from_json(path: Path, source: Model) -> _Reference:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingError("the source tokenizer needs tokenizers: pip install 'tersor[torch]'") from error
    tokenizer = Tokenizer.from_buffer(path.read_bytes())
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return _Reference(path.name, encode, _added(tokenizer, encode, source))


def _added(tokenizer: Tokenizer, encode: Encode, source: Model) -> str:
    """The added tokens, one behind the other, in the order of their ids.

    Left out are those that take white space with them, which a GGUF cannot say, those without a row in the embedding,
    and those that the source itself does not find side by side, such as a line break where two are a token too.
    """
    made = source.tokenizer
    if made is None:
        return ""
    texts = []
    for id_, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        text = token.content.replace(SPACE, " ") if made.model == "llama" else token.content
        is_plain = id_ < len(made.tokens) and not (token.lstrip or token.rstrip)
        if is_plain and encode(2 * text) == [id_, id_]:
            texts.append(text)
    return "".join(texts)


def _from_model(path: Path) -> Encode:
    try:
        import sentencepiece  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingError("the source's tokenizer.model needs sentencepiece: pip install sentencepiece") from error
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(text: str) -> list[int]:
        return list(processor.encode(text))

    return encode


def _encodable(texts: Sequence[str], source: Model) -> list[str]:
    alphabet = source.tokenizer.alphabet if source.tokenizer is not None else None
    if alphabet is None:
        return list(texts)
    kept = ("".join(letter for letter in text if letter in alphabet) for text in texts)
    return [text for text in kept if text]


def _difference(text: str, expected: list[int], ids: list[int]) -> str:
    """The first place where two tokenizations part, with the text that they are of."""
    pairs = zip(expected, ids, strict=False)
    at = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(ids)))
    start = max(0, at - 1)
    return (
        f"{text[:60]!r}…: from token {at} on {expected[start : at + _AROUND]} in the source, "
        f"{ids[start : at + _AROUND]} in llama.cpp"
    )

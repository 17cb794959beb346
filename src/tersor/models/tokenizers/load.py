"""From a checkpoint folder to a GgufTokenizer: finds the kind of tokenizer and hands it to its module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tersor.core.errors import FormatError, MissingError, UnsupportedError
from tersor.models.tokenizers import byte_level, space_marked
from tersor.models.tokenizers.gguf_tokenizer import GgufTokenizer
from tersor.models.tokenizers.sentencepiece_model import parse
from tersor.models.tokenizers.source import TokenizerFiles, mapping, sequence
from tersor.models.tokenizers.vocabulary import check_size

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: Path, vocabulary_size: int, *, architecture: str) -> GgufTokenizer:
    """The tokenizer of the checkpoint in `folder`, as GGUF stores it.

    vocabulary_size  rows of the embedding; a shorter vocabulary is filled up with unused tokens
    architecture     the model's, for messages

    SentencePiece tokenizer.model (BPE) and tokenizer.json of type BPE, byte-level or marked with ▁, are known. Raises
    UnsupportedError, which names the unknown part, FormatError for broken files, MissingError without any.
    """
    folder = Path(folder)
    check_size(vocabulary_size, folder)
    files = TokenizerFiles(folder)
    if files.has("tokenizer.model"):
        return _from_model(files, vocabulary_size)
    if files.has("tokenizer.json"):
        return _from_json(files, vocabulary_size)
    if files.has("vocab.json") or files.has("vocab.txt"):
        raise UnsupportedError(
            f"{folder}: the tokenizer is in the old layout (vocab and merges apart); save it as tokenizer.json with "
            "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raise MissingError(f"{folder}: no tokenizer.model and no tokenizer.json for this {architecture} model")


def _from_model(files: TokenizerFiles, size: int) -> GgufTokenizer:
    has_json = files.has("tokenizer.json")
    try:
        model = parse(files.read_bytes("tokenizer.model"), str(files.folder / "tokenizer.model"))
    except FormatError as error:
        if has_json and _is_byte_level(files.tokenizer):
            # Llama 3 and others name a tiktoken file tokenizer.model; the same tokenizer stands in tokenizer.json.
            return byte_level.from_json(files, size)
        raise UnsupportedError(f"{error}; a tiktoken file needs tokenizer.json beside it") from error
    if has_json and (difference := space_marked.agreement(files, model, files.folder)):
        tokenizer = _from_json(files, size)
        return replace(tokenizer, notes=(difference, *tokenizer.notes))
    return space_marked.from_model(files, model, size)


def _from_json(files: TokenizerFiles, size: int) -> GgufTokenizer:
    kind = mapping(files.tokenizer.get("model"), "tokenizer.json: model").get("type")
    if kind != "BPE":
        raise UnsupportedError(
            f"{files.folder}: a tokenizer.json of type {kind!r:.40} is not known; BPE is"
            + (", and SentencePiece BPE as tokenizer.model" if kind == "Unigram" else "")
        )
    if _is_byte_level(files.tokenizer):
        return byte_level.from_json(files, size)
    return space_marked.from_json(files, size)


def _is_byte_level(tokenizer: Mapping[str, object]) -> bool:
    """Whether the pre-tokenizer turns bytes into letters."""
    node = mapping(tokenizer.get("pre_tokenizer"), "tokenizer.json: pre_tokenizer")
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if step.get("type") == "ByteLevel":
            return True
        if step.get("type") == "Sequence":
            where = "tokenizer.json: pre_tokenizer.pretokenizers"
            waiting.extend(mapping(inner, where) for inner in sequence(step.get("pretokenizers"), where))
    return False

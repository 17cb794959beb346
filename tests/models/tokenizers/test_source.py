from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tersor.core.errors import FormatError
from tersor.models.tokenizers import load_tokenizer
from tersor.models.tokenizers.source import TokenizerFiles


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "an object was expected, found list"),
        ("[" * 200_000, "nests too deeply"),
        ('{"a":' * 100_000, "nests too deeply"),
        ('{"model": ' + "9" * 5000 + "}", "not JSON"),
        ('{"model": 3}', "model: an object was expected, found int"),
        ('{"model": {"type": "BPE", "vocab": {"a": true}}, "pre_tokenizer": {"type": "ByteLevel"}}', "a token id"),
        ('{"added_tokens": {}, "model": {"type": "BPE"}, "normalizer": []}', "an object was expected, found list"),
    ],
)
def test_hostile_json_ends_in_a_format_error_at_once(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    start = time.process_time()
    with pytest.raises(FormatError, match=message):
        load_tokenizer(tmp_path, 100, architecture="llama")
    assert time.process_time() - start < 20


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": "\xff"}')
    with pytest.raises(FormatError, match="not UTF-8"):
        load_tokenizer(tmp_path, 100, architecture="llama")


def test_a_file_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(FormatError, match="17179869184 bytes; a file of this kind has at most"):
        _ = TokenizerFiles(tmp_path).config


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
def test_an_impossible_vocabulary_size_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"a vocabulary of {size} tokens"):
        load_tokenizer(tmp_path, size, architecture="llama")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"tokenizer.json": {"added_tokens": [{"id": 1, "content": "a"}]}, "added_tokens.json": {"b": 1}},
            "id 1 is 'a' in one tokenizer file and 'b' in another",
        ),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "a token id"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"٣": {"content": "a"}}}}, "a token id"),
        ({"tokenizer.json": {"added_tokens": [{"id": 1, "content": "a", "special": 1}]}}, "true or false"),
        ({"tokenizer.json": {"added_tokens": [7]}}, "an object was expected, found int"),
    ],
)
def test_broken_added_tokens_are_refused(contents: dict[str, object], message: str, tmp_path: Path) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(FormatError, match=message):
        _ = TokenizerFiles(tmp_path).added_tokens

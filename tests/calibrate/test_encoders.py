"""Calibration text becomes the ids that the model's own tokenizer gives."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersor.calibrate import encoders
from tersor.calibrate.encoders import open_encoder
from tersor.core.errors import FormatError, MissingError
from tersor.models import load

from .conftest import Small

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'tersor[torch]'")

TEXT = "def add(first, second):\n    return first + second\n\nthe cat — sat on the mat, 1234 times\n" * 5
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def test_a_checkpoint_is_encoded_by_its_own_tokenizer_without_special_ids(dense: Small) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(dense.folder / "tokenizer.json"))
    with open_encoder(dense.model) as encoder:
        assert list(encoder.encode(TEXT)) == theirs.encode(TEXT, add_special_tokens=False).ids
        assert encoder.begin is None


def test_long_text_is_cut_at_line_ends_and_loses_nothing(dense: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(dense.folder / "tokenizer.json"))
    for size in (1, 7, 40, 100, 1 << 16):
        monkeypatch.setattr(encoders, "_PIECE", size)
        with open_encoder(dense.model) as encoder:
            assert theirs.decode(list(encoder.encode(TEXT))) == TEXT
            assert list(encoder.encode("")) == []


@pytest.mark.parametrize("what", ["truncation", "padding"])
def test_lengths_that_the_file_was_trained_with_change_nothing(dense: Small, what: str) -> None:
    path = dense.folder / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    expected = theirs.encode(TEXT, add_special_tokens=False).ids
    theirs.enable_truncation(16) if what == "truncation" else theirs.enable_padding(length=4096)
    theirs.save(str(path))
    with open_encoder(load(dense.folder)) as encoder:
        assert list(encoder.encode(TEXT)) == expected


def open_with_bos(folder: Path) -> None:
    """Let the tokenizer begin every text with <s>, as its post-processor says."""
    path = folder / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    theirs.save(str(path))


def test_sequences_begin_with_what_llama_cpp_will_put_there(dense: Small) -> None:
    open_with_bos(dense.folder)
    with open_encoder(load(dense.folder)) as encoder:
        assert encoder.begin == 0


def test_a_checkpoint_without_tokenizer_json_is_read_by_transformers(dense: Small) -> None:
    with open_encoder(dense.model) as encoder:
        expected = list(encoder.encode(TEXT))
        encoder._split = None  # type: ignore[attr-defined]
        assert list(encoder.encode(TEXT)) == expected


def test_conversations_take_the_models_template(dense: Small) -> None:
    path = dense.folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    messages = (("user", "the cat"), ("assistant", "sat"))
    with open_encoder(dense.model) as encoder:
        assert list(encoder.encode_chat(messages)) == list(encoder.encode("<user>the cat\n<assistant>sat\n"))


def test_a_beginning_in_the_template_is_not_doubled(dense: Small) -> None:
    path = dense.folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "chat_template": "{{ bos_token }}" + TEMPLATE}
    path.write_text(json.dumps(settings))
    open_with_bos(dense.folder)
    with open_encoder(load(dense.folder)) as encoder:
        found = list(encoder.encode_chat([("user", "sat")]))
        assert encoder.begin not in found
        assert found == list(encoder.encode("<user>sat\n"))


def test_a_model_without_template_refuses_conversations(dense: Small) -> None:
    with (
        open_encoder(dense.model) as encoder,
        pytest.raises(MissingError, match="no chat template for conversations: calibrate it on plain text"),
    ):
        encoder.encode_chat([("user", "hello")])


def test_a_gguf_is_encoded_by_llama_cpp(tiny_gguf: Callable[..., Path]) -> None:
    pytest.importorskip("xllamacpp", reason="a GGUF's text is encoded by llama.cpp: pip install 'tersor[llama]'")
    with open_encoder(load(tiny_gguf())) as encoder:
        assert list(encoder.encode("abc")) == [ord(letter) for letter in "abc"]
        assert encoder.begin is None
        with pytest.raises(MissingError, match="need the chat template of a checkpoint folder"):
            encoder.encode_chat([("user", "hello")])


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_tokenizer_is_named(content: str, dense: Small) -> None:
    (dense.folder / "tokenizer.json").write_text(content)
    with pytest.raises(FormatError, match=r"tokenizer\.json"), open_encoder(dense.model):
        pass


def test_a_model_that_is_in_no_folder_has_no_tokenizer(dense: Small) -> None:
    with (
        pytest.raises(MissingError, match="no folder with a tokenizer"),
        open_encoder(dataclasses.replace(dense.model, files=())),
    ):
        pass


def test_without_the_library_the_remedy_is_told(dense: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingError, match=r"pip install 'tersor\[torch\]'"), open_encoder(dense.model):
        pass


def test_a_tokenizer_that_transformers_cannot_open_is_told(dense: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no such class")

    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with (
        open_encoder(dense.model) as encoder,
        pytest.raises(MissingError, match=r"transformers cannot open its tokenizer \(no such class\)"),
    ):
        encoder.encode_chat([("user", "hello")])

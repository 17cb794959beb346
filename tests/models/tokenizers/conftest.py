"""Corpora, writers of checkpoint folders, and a real llama.cpp that holds only a vocabulary."""

from __future__ import annotations

import inspect
import json
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import gguf
import pytest

from tersor.engines.llama_cpp import LlamaCpp
from tersor.models.tokenizers import GgufTokenizer

_SENTENCES = (
    "The quick brown fox doesn't jump; it's lazy, we'll see, they've said I'm wrong and he'd agree.",
    "Türkiye'deki Ankara'dan İstanbul'a, l'été d'accord qu'il m'a dit 'salut' aux s'ils O'REILLY'S",
    "École, garçon, naïveté, señor, Müller, Straße, Ångström, žluťoučký kůň, łódź, ıİ, e\u0301 a\u0308.",
    "Съешь ещё этих мягких французских булок. Καλημέρα κόσμε! שלום עולם مرحبا بالعالم",
    "東京タワーは高いです。你好，世界！这是一个测试。한국어 텍스트입니다. नमस्ते दुनिया สวัสดี",
    "🙂👍🏽 👩‍👩‍👧 🇩🇪 ❤️ → ≠ ∑ √ € £ ™ © ½ ² Ⅳ ٣٤",
    "1 12 123 1234 12345 1,000,000 3.14159e-10 0xDEADBEEF 2026-11-24 10:30:00 x1y2z3",
    "spaces  two   three    four        eight \t tab\t\ttabs \u00a0nbsp \u3000wide end   ",
    "lines\n\n\nmore\r\nwindows\r\n\r\n   indented\n\t\ttabbed\n \n  \n",
    '()[]{}<>/\\|!?.,:;\'"`~@#$%^&*-_=+ ... --- !!?? /* c */ // x #!/bin/sh a->b::c <div class="x">',
)


class Parity(Protocol):
    """Asserts that llama.cpp makes the ids of `reference` from each text."""

    def __call__(
        self,
        tokenizer: GgufTokenizer,
        reference: Callable[[str], list[int]],
        texts: list[str],
        *,
        special: bool = False,
    ) -> None: ...


def mixed_texts() -> list[str]:
    """About 30 kB of code, prose in many scripts, digits, emoji and white space, in pieces of unequal length."""
    generator = random.Random(7)
    code = inspect.getsource(json.decoder) + inspect.getsource(textwrap)
    texts = [*_SENTENCES, *code.splitlines(keepends=True), code[:4000], ""]
    letters = "".join(_SENTENCES)
    texts += ["".join(generator.choice(letters) for _ in range(40)) for _ in range(150)]
    texts += [" ".join(generator.sample(letters.split(), 12)) for _ in range(60)]
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return mixed_texts()


@pytest.fixture(scope="session")
def training_texts() -> list[str]:
    code = inspect.getsource(json.decoder) + inspect.getsource(textwrap)
    return [*_SENTENCES * 4, *(code[start : start + 200] for start in range(0, len(code), 200))]


def write_vocabulary(path: Path, tokenizer: GgufTokenizer) -> None:
    """A GGUF with the tokenizer and the few keys without which llama.cpp does not load one."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    single = {"str": writer.add_string, "bool": writer.add_bool, "u32": writer.add_uint32}
    for key, entry in tokenizer.metadata().items():
        if entry.kind in single:
            single[entry.kind](key, entry.value)
        else:
            kind = {"[f32]": "FLOAT32", "[i32]": "INT32", "[str]": "STRING"}[entry.kind]
            array = gguf.GGUFValueType.ARRAY
            writer.add_key_value(key, entry.value, array, sub_type=gguf.GGUFValueType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[GgufTokenizer], LlamaCpp]:
    """Opens llama.cpp on a tokenizer; the caller closes it."""

    def open_engine(tokenizer: GgufTokenizer) -> LlamaCpp:
        path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
        write_vocabulary(path, tokenizer)
        return LlamaCpp(path, vocabulary_only=True, timeout_s=60)

    return open_engine


@pytest.fixture(scope="session")
def assert_parity(engine_of: Callable[[GgufTokenizer], LlamaCpp]) -> Parity:
    def check(
        tokenizer: GgufTokenizer, reference: Callable[[str], list[int]], texts: list[str], *, special: bool = False
    ) -> None:
        with engine_of(tokenizer) as engine:
            found = [engine.tokenize(text, add_special=special, parse_special=True) for text in texts]
        wrong = [
            (text[:80], expected[:20], ids[:20])
            for text, ids in zip(texts, found, strict=True)
            if (expected := reference(text)) != ids
        ]
        assert wrong == [], f"{len(wrong)} of {len(texts)} texts differ"

    return check

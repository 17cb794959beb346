"""Equal tokens on mixed text, or the place where they part."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from operator import itemgetter
from pathlib import Path

import pytest

from tersor.evaluation.checks.corpus import PROSE, mixed_texts
from tersor.evaluation.checks.tokens import check_tokens
from tersor.models import Model, load


def test_the_corpus_is_large_mixed_and_always_the_same() -> None:
    texts = mixed_texts()
    whole = "".join(texts)
    assert texts == mixed_texts()
    assert len(whole.encode()) > 20_000
    for letter in ("é", "ß", "щ", "漢", "헌", "ع", "👍", "\u200d", "\t", "    ", "\r\n", "def ", "\u0301"):
        assert letter in whole, letter


def test_tokens_are_those_of_the_source(exact: Path, source: Model) -> None:
    check = check_tokens(exact, source, mixed_texts())
    assert check.status == "passed", check.problems
    assert check.numbers["bytes"] > 20_000
    assert check.numbers["texts_differing"] == 0


def test_a_gguf_is_a_reference_too(exact: Path) -> None:
    check = check_tokens(exact, load(exact), [PROSE])
    assert check.status == "passed"


def other_source(checkpoint: Path, folder: Path) -> Model:
    """The same model, but its tokenizer merges in another order."""
    shutil.copytree(checkpoint, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:1]
    path.write_text(json.dumps(content))
    return load(folder)


def test_another_tokenizer_is_caught_with_the_place(checkpoint: Path, exact: Path, tmp_path: Path) -> None:
    check = check_tokens(exact, other_source(checkpoint, tmp_path / "other"), ["the cat sat", "1"])
    assert check.status == "failed"
    assert check.numbers["texts_differing"] == 1
    assert "'the cat sat'" in check.problems[0]
    assert "in llama.cpp" in check.problems[0]


def with_added_token(checkpoint: Path, folder: Path) -> Model:
    """The same model, but its last token is an added one with another text, and one more has no row."""
    shutil.copytree(checkpoint, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    last, id_ = max(content["model"]["vocab"].items(), key=itemgetter(1))
    del content["model"]["vocab"][last]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"].append({"id": id_, "content": "<｜fim▁begin｜>", **flags})
    content["added_tokens"].append({"id": id_ + 1, "content": "<image>", **flags})
    path.write_text(json.dumps(content))
    return load(folder)


def test_an_added_token_that_the_artefact_lacks_is_caught(checkpoint: Path, exact: Path, tmp_path: Path) -> None:
    check = check_tokens(exact, with_added_token(checkpoint, tmp_path / "added"), ["1"])
    assert (check.status, check.numbers["texts_differing"]) == ("failed", 1)
    assert check.problems[0].startswith("'<s></s><｜fim▁begin｜>'…: from token 2 on [1, 287] in the source")


def test_without_tokenizers_it_is_skipped_with_the_remedy(
    exact: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    check = check_tokens(exact, source, [PROSE])
    assert check.status == "skipped"
    assert "pip install 'tersor[torch]'" in check.detail


def test_a_source_without_tokenizer_files_is_skipped(exact: Path, source: Model) -> None:
    check = check_tokens(exact, dataclasses.replace(source, files=()), [PROSE])
    assert check.status == "skipped"
    assert "no tokenizer.json" in check.detail

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersor.core.errors import FormatError
from tersor.models.tokenizers.source import TokenizerFiles
from tersor.models.tokenizers.special import added_ends, chat_templates, special_ids
from tersor.models.tokenizers.vocabulary import Vocabulary

_TOKENS = ("<s>", "</s>", "<|eot_id|>", "<|eom_id|>", "<pad>")
_VOCABULARY = Vocabulary(_TOKENS, (3,) * 5, (0.0,) * 5, {token: id_ for id_, token in enumerate(_TOKENS)})


def files(folder: Path, **contents: object) -> TokenizerFiles:
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return TokenizerFiles(folder)


def test_the_tokenizer_names_special_tokens_and_the_model_fills_the_gaps(tmp_path: Path) -> None:
    source = files(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "<|eot_id|>"}, "bos_token": None},
        special_tokens_map={"bos_token": "<s>"},
        config={"eos_token_id": 1, "pad_token_id": 4, "bos_token_id": 1},
        generation_config={"eos_token_id": [1, 2, 3]},
    )
    assert special_ids(source, _VOCABULARY, {"bos": 3}) == ({"bos": 0, "eos": 2, "pad": 4, "eot": 1, "eom": 3}, [])


@pytest.mark.parametrize(
    ("ends", "expected", "told"),
    [
        ([1, 2, 4], {"eot": 2, "eom": 4}, ""),
        ([1, 4, 2, 3], {"eot": 4, "eom": 3}, "2 ('<|eot_id|>')"),
        ([4, 1, 0, 2, 2, 4], {"eot": 4, "eom": 0}, "2 ('<|eot_id|>')"),
        ([1, 4, 2, 0, 3], {"eot": 4, "eom": 3}, "2 ('<|eot_id|>'), 0 ('<s>')"),
    ],
)
def test_further_ends_take_the_two_places_there_are_and_others_are_named(
    ends: list[int], expected: dict[str, int], told: str, tmp_path: Path
) -> None:
    source = files(tmp_path, config={"bos_token_id": 0, "eos_token_id": 1}, generation_config={"eos_token_id": ends})
    ids, notes = special_ids(source, _VOCABULARY, {})
    assert ids == {"bos": 0, "eos": 1} | expected
    begin = "generation ends at further tokens, which a GGUF has no key for: "
    assert notes == ([begin + told] if told else [])


def test_minus_one_means_no_such_token(tmp_path: Path) -> None:
    source = files(tmp_path, config={"pad_token_id": -1, "eos_token_id": [1, 2], "bos_token_id": 0})
    assert special_ids(source, _VOCABULARY, {}) == ({"bos": 0, "eos": 1}, [])


def test_a_missing_end_gets_a_stand_in_since_llama_cpp_would_take_any_token(tmp_path: Path) -> None:
    source = files(tmp_path, tokenizer_config={"pad_token": "<pad>", "unk_token": "<unk>"})
    ids, notes = special_ids(source, _VOCABULARY, {})
    assert ids == {"bos": 4, "eos": 4, "pad": 4}
    assert notes == [
        "unk_token is '<unk>', which is not in the vocabulary: it was left out",
        "no bos token is named: '<pad>' stands in for it",
        "no eos token is named: '<pad>' stands in for it",
    ]
    plain = Vocabulary(("a",), (1,), (0.0,), {"a": 0})
    assert "no special token could stand in" in special_ids(files(tmp_path, tokenizer_config={}), plain, {})[1][1]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"tokenizer_config": {"eos_token": "<|x|>"}}, "eos_token is '<|x|>', which is not in the vocabulary"),
        ({"tokenizer_config": {"eos_token": 3}}, "eos_token: a string was expected, found int"),
        ({"config": {"eos_token_id": 5}}, "eos token id 5 lies outside the vocabulary of 5"),
        ({"config": {"eos_token_id": "1"}}, "a token id"),
        ({"generation_config": {"eos_token_id": [1, 900]}}, "eot token id 900 lies outside"),
        ({"generation_config": {"eos_token_id": [0, 1, 2, 900]}}, "end token id 900 lies outside"),
    ],
)
def test_impossible_special_tokens_are_refused(contents: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message.replace("|", r"\|")):
        special_ids(files(tmp_path, **contents), _VOCABULARY, {})


def test_without_tokenizer_json_the_config_says_what_is_added(tmp_path: Path) -> None:
    source = files(tmp_path, tokenizer_config={"add_bos_token": True, "add_eos_token": True})
    assert added_ends(source, {"bos": 0}) == (True, False, [])


def test_a_chat_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    source = files(tmp_path / "a", tokenizer_config={"chat_template": named})
    assert chat_templates(source) == {"": "d", "tool_use": "t"}
    source = files(tmp_path / "a", chat_template={"chat_template": "from json"})
    assert chat_templates(source) == {"": "from json"}
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ é }}")
    (tmp_path / "a" / "additional_chat_templates").mkdir()
    (tmp_path / "a" / "additional_chat_templates" / "rag.jinja").write_text("r")
    assert chat_templates(source) == {"": "{{ é }}", "rag": "r"}
    (tmp_path / "b").mkdir()
    assert chat_templates(files(tmp_path / "b", tokenizer_config={"chat_template": "plain"})) == {"": "plain"}


def test_a_chat_template_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="chat_template: an array was expected, found int"):
        chat_templates(files(tmp_path, tokenizer_config={"chat_template": 7}))

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers

from tersor.core.errors import FormatError, UnsupportedError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models.tokenizers import GgufTokenizer, TokenType, load_tokenizer
from tersor.models.tokenizers.pretokenizers import ROWS, Row

if TYPE_CHECKING:
    from .conftest import Parity

_GPT2, _LLAMA3 = ROWS[0], next(row for row in ROWS if row.pre == "llama-bpe")


def trained(row: Row, texts: list[str], size: int = 1200) -> Tokenizer:
    """A tokenizer with the row's steps, whose merges were learnt without them: they cross every border that the
    splitting draws, so that a border drawn elsewhere shows in the tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=row.ignore_merges))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator([text[i : i + 16] for text in texts for i in range(0, len(text), 16)], trainer)
    *regexes, last = row.splits
    uses_own = last == _GPT2.splits[0]
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(regex), "isolated") for regex in (regexes if uses_own else row.splits)
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=uses_own))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def saved(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))
    return folder


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def gpt2(training_texts: list[str]) -> Tokenizer:
    return trained(_GPT2, training_texts, 600)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.inexact], ids=lambda row: row.pre)
def test_llama_cpp_makes_the_tokens_of_every_exact_structure(
    row: Row, tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    source = trained(row, training_texts)
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1300, architecture="llama")
    assert (tokenizer.model, tokenizer.pre, tokenizer.notes) == ("gpt2", row.pre, ())
    assert sum(len(text.encode()) for text in texts) >= 20_000
    assert_parity(tokenizer, lambda text: source.encode(text).ids, texts)


@pytest.mark.parametrize("row", [row for row in ROWS if row.inexact], ids=lambda row: row.pre)
def test_an_inexact_structure_is_noted_and_agrees_on_ascii(
    row: Row, tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    source = trained(row, training_texts)
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1300, architecture="llama")
    assert "upper and lower case only in ASCII" in tokenizer.notes[0]
    assert_parity(tokenizer, lambda text: source.encode(text).ids, [text for text in texts if text.isascii()])


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory,
    training_texts: list[str],
    engine_of: Callable[[GgufTokenizer], LlamaCpp],
) -> Iterator[tuple[Tokenizer, LlamaCpp]]:
    source = trained(_LLAMA3, training_texts)
    folder = saved(tmp_path_factory.mktemp("property") / "m", source)
    with engine_of(load_tokenizer(folder, 1300, architecture="llama")) as engine:
        yield source, engine


@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60))
@example(text="  \r\n\t a'LL\u00a0\u3000\u2028 x")
@settings(deadline=None, max_examples=200)
def test_any_text_gives_the_source_tokens(text: str, opened: tuple[Tokenizer, LlamaCpp]) -> None:
    source, engine = opened
    assert engine.tokenize(text) == source.encode(text).ids


@pytest.mark.parametrize("spelling", ["phi-4", "removed"])
def test_other_spellings_of_a_structure_are_recognised(
    spelling: str, tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    dbrx = next(row for row in ROWS if row.pre == "dbrx")
    source = trained(dbrx, training_texts)
    possessive = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    split = (
        pre_tokenizers.Split(Regex(possessive), "isolated")
        if spelling == "phi-4"
        else pre_tokenizers.Split(Regex(dbrx.splits[0]), "removed", invert=True)
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    source.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1300, architecture="phi3")
    assert tokenizer.pre == "dbrx"
    assert_parity(tokenizer, lambda text: source.encode(text).ids, texts)


def test_special_and_added_tokens_are_cut_out_of_the_text(
    tmp_path: Path, training_texts: list[str], assert_parity: Parity
) -> None:
    source = trained(_LLAMA3, training_texts)
    source.add_tokens([AddedToken("    ", normalized=False), AddedToken("def ", normalized=False)])
    source.add_special_tokens(["<|user|>"])
    source.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1300, architecture="llama")
    ids = source.get_vocab()
    assert tokenizer.types[ids["def "]] == TokenType.USER_DEFINED
    assert tokenizer.types[ids["<|user|>"]] == TokenType.CONTROL
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.special_ids) == (True, False, {"bos": 0, "eos": 1})
    texts = ["<|user|>def f():\n        return 1<|end|>\n", "def  x", "a<|begin|>b", ""]
    assert_parity(tokenizer, lambda text: source.encode(text, add_special_tokens=False).ids, texts)
    assert_parity(tokenizer, lambda text: source.encode(text).ids, texts, special=True)


def test_a_mark_in_an_added_token_is_no_space(tmp_path: Path, training_texts: list[str], assert_parity: Parity) -> None:
    source = trained(_LLAMA3, training_texts)
    source.add_tokens([AddedToken("<｜fim▁begin｜>", normalized=False)])
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1300, architecture="llama")
    assert tokenizer.tokens[source.get_vocab_size() - 1] == "<｜fim▁begin｜>"
    assert_parity(tokenizer, lambda text: source.encode(text).ids, ["<｜fim▁begin｜>def f(", "<｜fim begin｜>"])


def test_the_post_processor_outranks_add_bos_token_as_in_transformers(
    tmp_path: Path, gpt2: Tokenizer, texts: list[str], assert_parity: Parity
) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow to import, needed here alone

    folder = saved(tmp_path / "m", gpt2, add_bos_token=False, add_eos_token=True, backend="tokenizers")
    folder = changed(folder, lambda content: content.update(post_processor=_begin()))
    tokenizer = load_tokenizer(folder, 700, architecture="llama")
    assert (tokenizer.add_bos, tokenizer.add_eos) == (True, False)
    assert [note[:43] for note in tokenizer.notes] == [
        "tokenizer_config.json says add_bos_token=Fa",
        "tokenizer_config.json says add_eos_token=Tr",
    ]
    source = AutoTokenizer.from_pretrained(folder)
    assert_parity(tokenizer, lambda text: list(source(text)["input_ids"]), texts[:60], special=True)


def _begin() -> dict[str, object]:
    piece: dict[str, object] = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    }


def test_a_short_vocabulary_is_filled_with_unused_tokens(tmp_path: Path, gpt2: Tokenizer) -> None:
    tokenizer = load_tokenizer(saved(tmp_path / "m", gpt2), 603, architecture="llama")
    assert tokenizer.tokens[600:] == ("[PAD600]", "[PAD601]", "[PAD602]")
    assert tokenizer.types[600:] == (TokenType.UNUSED,) * 3


def test_a_vocabulary_longer_than_the_embedding_is_refused(tmp_path: Path, gpt2: Tokenizer) -> None:
    with pytest.raises(UnsupportedError, match=r"token id 599 .* the embedding has only 599 rows; enlarge"):
        load_tokenizer(saved(tmp_path / "m", gpt2), 599, architecture="llama")


def test_added_tokens_without_a_row_are_left_out_with_a_note(tmp_path: Path, gpt2: Tokenizer) -> None:
    source = Tokenizer.from_str(gpt2.to_str())
    source.add_special_tokens(["<image>", "<audio>"])
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 600, architecture="gemma3")
    assert len(tokenizer.tokens) == 600
    assert tokenizer.notes == (
        "2 added tokens ('<image>', '<audio>') lie beyond the 600 rows of the embedding: they were left out",
    )
    changed(tmp_path / "m", lambda content: content["model"]["vocab"].update({"<image>": 600}))
    assert load_tokenizer(tmp_path / "m", 600, architecture="gemma3") == tokenizer


@pytest.mark.parametrize("name", ["bos", "eos", "pad"])
def test_an_end_or_padding_without_a_row_is_refused(name: str, tmp_path: Path, gpt2: Tokenizer) -> None:
    source = Tokenizer.from_str(gpt2.to_str())
    source.add_special_tokens(["<x>"])
    folder = saved(tmp_path / "m", source, **{f"{name}_token": "<x>"})
    with pytest.raises(UnsupportedError, match=r"token id 600 \('<x>'\), but the embedding has only 600 rows"):
        load_tokenizer(folder, 600, architecture="llama")


def test_an_unknown_structure_is_printed_with_the_nearest_known_one(tmp_path: Path, gpt2: Tokenizer) -> None:
    folder = changed(
        saved(tmp_path / "m", gpt2),
        lambda content: content.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": r"\p{N}{1,2}"}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                ],
            }
        ),
    )
    with pytest.raises(UnsupportedError, match=r"(?s)splits with\n  \\p\{N\}\{1,2\}  then .*the nearest is 'smollm'"):
        load_tokenizer(folder, 700, architecture="llama")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "Whitespace"}, "pre-tokenizer step 'Whitespace' is not known"),
        ({"type": "Digits", "individual_digits": False}, "pre-tokenizer step 'Digits' is not known"),
        ({"type": "Split", "pattern": {"String": "x"}, "behavior": "Isolated"}, "one by Regex is"),
        ({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "MergedWithNext"}, "behavior='mergedwithnext'"),
        ({"type": "ByteLevel", "add_prefix_space": True}, "has steps after ByteLevel"),
    ],
)
def test_an_unknown_step_stops_by_name(step: dict[str, object], message: str, tmp_path: Path, gpt2: Tokenizer) -> None:
    folder = changed(
        saved(tmp_path / "m", gpt2),
        lambda content: content.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [step, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}],
            }
        ),
    )
    with pytest.raises(UnsupportedError, match=message):
        load_tokenizer(folder, 700, architecture="llama")


def test_a_space_prefix_is_refused(tmp_path: Path, gpt2: Tokenizer) -> None:
    folder = saved(tmp_path / "m", gpt2)
    changed(folder, lambda content: content.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}))
    with pytest.raises(UnsupportedError, match="ByteLevel has add_prefix_space"):
        load_tokenizer(folder, 700, architecture="llama")


def test_composition_is_noted_and_other_normalizers_are_refused(tmp_path: Path, gpt2: Tokenizer) -> None:
    folder = saved(tmp_path / "m", gpt2)
    changed(folder, lambda content: content.update(normalizer={"type": "NFC"}))
    assert "decomposed accents differ" in load_tokenizer(folder, 700, architecture="qwen2").notes[0]
    changed(folder, lambda content: content.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(UnsupportedError, match="normalizer 'Lowercase' is not known"):
        load_tokenizer(folder, 700, architecture="qwen2")


def test_another_ignore_merges_is_harmless_only_if_the_merges_build_every_token(
    tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    source = trained(Row("qwen2", next(row.splits for row in ROWS if row.pre == "qwen2"), True), training_texts)
    folder = saved(tmp_path / "m", source)
    tokenizer = load_tokenizer(folder, 1300, architecture="qwen2")
    assert (tokenizer.pre, tokenizer.notes) == ("qwen2", ())
    assert_parity(tokenizer, lambda text: source.encode(text).ids, texts)
    changed(folder, lambda content: content["model"]["merges"].pop())
    assert "1 tokens that the merges do not build" in load_tokenizer(folder, 1300, architecture="qwen2").notes[0]


def test_bytes_without_a_token_are_noted(tmp_path: Path) -> None:
    source = Tokenizer(models.BPE())
    source.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|begin|>", "<|end|>"]
    source.train_from_iterator(["ab ab"], trainers.BpeTrainer(special_tokens=special, show_progress=False))
    note = load_tokenizer(saved(tmp_path / "m", source), 20, architecture="llama").notes[0]
    assert note.startswith("240 bytes have no token (00, 01")


def test_tokens_that_take_white_space_with_them_are_noted(tmp_path: Path, training_texts: list[str]) -> None:
    source = trained(_GPT2, training_texts, 600)
    source.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    notes = load_tokenizer(saved(tmp_path / "m", source), 700, architecture="llama").notes
    assert notes == (
        "1 added tokens ('<mask>') take the white space beside them or match whole words only; llama.cpp does neither",
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda model: model.update(merges=[["a", "zzz"]]), FormatError, "'a' .* 'zzz' joins or makes a token"),
        (lambda model: model.update(merges=["a b c"]), FormatError, "a pair was expected"),
        (lambda model: model.update(merges={"a": 1}), FormatError, "an array was expected, found dict"),
        (lambda model: model.update(merges=[7]), FormatError, "an array was expected, found int"),
        (lambda model: model["vocab"].update(x=-1), FormatError, "a token id .* was expected, found int '-1'"),
        (lambda model: model["vocab"].update(x=1.5), FormatError, "a token id .* was expected, found float"),
        (lambda model: model["vocab"].update(x=10**30), FormatError, "a token id .* was expected"),
        (lambda model: model["vocab"].update(x=2**30), UnsupportedError, "token id 1073741824 .* only 700 rows"),
        (lambda model: model["vocab"].update({"\ud800": 650}), FormatError, "lone surrogate"),
        (lambda model: model["vocab"].update({"a\0": 650}), UnsupportedError, "NUL"),
        (lambda model: model.update(vocab=["a"]), FormatError, "an object was expected, found list"),
        (lambda model: model.update(end_of_word_suffix="</w>"), UnsupportedError, "end_of_word_suffix='</w>'"),
        (lambda model: model.update(type="WordPiece"), UnsupportedError, "type 'WordPiece' is not known"),
    ],
)
def test_a_broken_model_stops_by_name(
    change: Callable[[dict[str, Any]], object],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    gpt2: Tokenizer,
) -> None:
    folder = changed(saved(tmp_path / "m", gpt2), lambda content: change(content["model"]))
    with pytest.raises(error, match=message):
        load_tokenizer(folder, 700, architecture="llama")


def test_a_tiktoken_file_beside_tokenizer_json_is_passed_over(tmp_path: Path, gpt2: Tokenizer) -> None:
    folder = saved(tmp_path / "m", gpt2)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert load_tokenizer(folder, 600, architecture="llama").pre == "gpt-2"


def test_a_large_vocabulary_loads_in_bounded_time(tmp_path: Path) -> None:
    letters = [chr(0x100 + i) for i in range(400)]
    pairs = [(left, right) for left in letters for right in letters]
    vocabulary = {token: i for i, token in enumerate([*letters, *(left + right for left, right in pairs)])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "ignore_merges": True}
    content = {"model": model, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    start = time.process_time()
    tokenizer = load_tokenizer(tmp_path, 200_000, architecture="llama")
    assert len(tokenizer.tokens) == 200_000
    assert len(tokenizer.metadata()["tokenizer.ggml.merges"].value) == 160_000  # type: ignore[arg-type] # a list
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": []}] * 100_000},
        {"type": "Split", "pattern": {"Regex": "a|" * 500_000}, "behavior": "Isolated"},
    ],
    ids=["wide", "long"],
)
def test_a_hostile_structure_is_refused_at_once(pre_tokenizer: dict[str, Any], tmp_path: Path, gpt2: Tokenizer) -> None:
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [pre_tokenizer, last]}
    folder = changed(saved(tmp_path / "m", gpt2), lambda content: content.update(pre_tokenizer=steps))
    start = time.process_time()
    with pytest.raises(UnsupportedError, match=r"llama\.cpp has no pre-tokenizer that splits with") as caught:
        load_tokenizer(folder, 600, architecture="llama")
    assert time.process_time() - start < 20
    assert len(str(caught.value)) < 5000

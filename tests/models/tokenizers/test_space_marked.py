from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tersor.core.errors import FormatError, MissingError, UnsupportedError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models.tokenizers import GgufTokenizer, TokenType, load_tokenizer

if TYPE_CHECKING:
    from .conftest import Parity

_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama2_style(texts: list[str], *, prefix: bool = True, with_bytes: bool = True, size: int = 1000) -> Tokenizer:
    """A new tokenizer.json as Llama 2's: ▁ for spaces by normalizer, byte tokens, no pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=with_bytes))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    special = [*_SPECIAL, *(_BYTES if with_bytes else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, limit_alphabet=120, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in _SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def saved(folder: Path, tokenizer: Tokenizer | None = None, model: bytes | None = None, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))
    return folder


def changed(folder: Path, **parts: object) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return folder


def sentencepiece_model(texts: list[str], **options: Any) -> bytes:
    out = io.BytesIO()
    settled: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 900,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "minloglevel": 2,
        "num_threads": 1,
    }
    lines = [line for text in texts for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **settled | options)
    return out.getvalue()


@pytest.fixture(scope="module")
def llama2(training_texts: list[str]) -> Tokenizer:
    return llama2_style(training_texts)


@pytest.fixture(scope="module")
def spm(training_texts: list[str]) -> bytes:
    return sentencepiece_model(training_texts)


def test_a_new_byte_fallback_tokenizer_json_keeps_its_tokens(
    tmp_path: Path, llama2: Tokenizer, texts: list[str], assert_parity: Parity
) -> None:
    tokenizer = load_tokenizer(saved(tmp_path / "m", llama2), 1000, architecture="llama")
    assert (tokenizer.model, tokenizer.pre, tokenizer.merges, tokenizer.notes) == ("llama", None, None, ())
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_space_prefix) == (True, False, True)
    assert tokenizer.special_ids == {"unk": 0, "bos": 1, "eos": 2}
    kinds = [tokenizer.types[i] for i in (0, 1, 3, 258, 259)]
    assert kinds == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE, TokenType.BYTE, TokenType.NORMAL]
    assert sum(len(text.encode()) for text in texts) >= 20_000
    assert_parity(tokenizer, lambda text: llama2.encode(text, add_special_tokens=False).ids, texts)
    assert_parity(tokenizer, lambda text: llama2.encode(text).ids, texts, special=True)


def test_scores_are_distinct_and_fall_with_the_merge_rank(tmp_path: Path, llama2: Tokenizer) -> None:
    tokenizer = load_tokenizer(saved(tmp_path / "m", llama2), 1000, architecture="llama")
    assert tokenizer.scores is not None
    assert len(set(tokenizer.scores)) == 1000
    merges = json.loads(llama2.to_str())["model"]["merges"]
    ids = llama2.get_vocab()
    assert [tokenizer.scores[ids[left + right]] for left, right in merges] == [-float(i) for i in range(len(merges))]


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, llama2: Tokenizer, engine_of: Callable[[GgufTokenizer], LlamaCpp]
) -> Iterator[LlamaCpp]:
    folder = saved(tmp_path_factory.mktemp("property") / "m", llama2)
    with engine_of(load_tokenizer(folder, 1000, architecture="llama")) as engine:
        yield engine


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text=" ▁ \u3000\0 <0x41>")
@settings(deadline=None, max_examples=200)
def test_any_text_gives_the_source_tokens(text: str, opened: LlamaCpp, llama2: Tokenizer) -> None:
    assert opened.tokenize(text, add_special=True, parse_special=True) == llama2.encode(text).ids


def test_gemma_style_has_no_prefix_and_spaces_as_added_tokens(
    tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    source = llama2_style(training_texts, prefix=False)
    source.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    source.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<unused1>", normalized=False)])
    source.add_special_tokens(["<end_of_turn>"])
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1010, architecture="gemma2")
    assert tokenizer.add_space_prefix is False
    assert tokenizer.types[source.get_vocab()["\n\n"]] == TokenType.USER_DEFINED
    more = ["a\n\nb<end_of_turn>\n", "<s>x<unused1> y"]
    assert_parity(tokenizer, lambda text: source.encode(text).ids, texts + more, special=True)


def test_user_defined_tokens_hold_plain_spaces(tmp_path: Path, llama2: Tokenizer) -> None:
    source = Tokenizer.from_str(llama2.to_str())
    source.add_tokens([AddedToken("▁q▁q▁", normalized=False)])
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1001, architecture="llama")
    assert tokenizer.tokens[1000] == " q q "


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_agrees_except_on_texts_that_begin_with_a_space(
    scheme: str, tmp_path: Path, llama2: Tokenizer, texts: list[str], assert_parity: Parity
) -> None:
    source = Tokenizer.from_str(llama2.to_str())
    source.normalizer = None
    source.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 1000, architecture="llama")
    assert tokenizer.add_space_prefix is (scheme != "never")
    assert len(tokenizer.notes) == {"always": 1, "first": 2, "never": 0}[scheme]
    plain = [text for text in texts if not text.startswith((" ", "▁"))] if scheme != "never" else texts
    assert_parity(tokenizer, lambda text: source.encode(text).ids, plain, special=True)


def test_metaspace_that_splits_is_refused_if_a_token_holds_an_inner_mark(tmp_path: Path, llama2: Tokenizer) -> None:
    folder = saved(tmp_path / "m", llama2)
    changed(folder, normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "split": True})
    with pytest.raises(UnsupportedError, match="Metaspace splits at every ▁, but tokens such as"):
        load_tokenizer(folder, 1000, architecture="llama")


def test_without_byte_tokens_the_alphabet_says_what_llama_cpp_can_encode(
    tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    source = llama2_style(training_texts, with_bytes=False, size=700)
    tokenizer = load_tokenizer(saved(tmp_path / "m", source), 700, architecture="llama")
    assert tokenizer.alphabet is not None
    assert "llama.cpp aborts on any character that is not a token" in tokenizer.notes[0]
    known = ["".join(letter for letter in text if letter in tokenizer.alphabet) for text in texts]
    assert sum(map(len, known)) > 20_000
    assert_parity(tokenizer, lambda text: source.encode(text).ids, known, special=True)


def test_a_sentencepiece_model_alone_keeps_its_tokens(
    tmp_path: Path, spm: bytes, texts: list[str], assert_parity: Parity
) -> None:
    source = sentencepiece.SentencePieceProcessor(model_proto=spm)
    tokenizer = load_tokenizer(saved(tmp_path / "m", model=spm, add_bos_token=True), 1000, architecture="llama")
    assert (tokenizer.model, tokenizer.notes, tokenizer.alphabet) == ("llama", (), None)
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_space_prefix) == (True, None, True)
    assert tokenizer.tokens[:900] == tuple(source.id_to_piece(id_) for id_ in range(900))
    # SentencePiece reads ▁ as a space and drops NUL; neither is text.
    assert_parity(tokenizer, lambda text: list(source.encode(text)), texts)


def test_a_sentencepiece_model_without_prefix_says_so(
    tmp_path: Path, training_texts: list[str], texts: list[str], assert_parity: Parity
) -> None:
    model = sentencepiece_model(training_texts, add_dummy_prefix=False, user_defined_symbols=["<start_of_turn>"])
    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = load_tokenizer(saved(tmp_path / "m", model=model), 900, architecture="gemma")
    assert (tokenizer.add_space_prefix, tokenizer.add_bos) == (False, None)
    assert tokenizer.types[source.piece_to_id("<start_of_turn>")] == TokenType.USER_DEFINED
    assert_parity(tokenizer, lambda text: list(source.encode(text)), [*texts, "<start_of_turn>user\nhi"])


def test_added_tokens_join_a_sentencepiece_model(tmp_path: Path, spm: bytes) -> None:
    added = {
        "900": {"content": "<|user|>", "special": True, "rstrip": True},
        "901": {"content": "<tool>", "special": False},
    }
    folder = saved(tmp_path / "m", model=spm, added_tokens_decoder=added)
    (folder / "added_tokens.json").write_text('{"<more>": 902}')
    tokenizer = load_tokenizer(folder, 904, architecture="phi3")
    assert tokenizer.tokens[900:] == ("<|user|>", "<tool>", "<more>", "[PAD903]")
    assert tokenizer.types[900:] == (
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
        TokenType.USER_DEFINED,
        TokenType.UNUSED,
    )
    assert "'<|user|>'" in tokenizer.notes[0]


def test_a_tiktoken_file_needs_a_tokenizer_json(tmp_path: Path) -> None:
    tiktoken = b"IQ== 0\nIg== 1\nIw== 2\n"
    with pytest.raises(UnsupportedError, match=r"a tiktoken file needs tokenizer\.json beside it"):
        load_tokenizer(saved(tmp_path / "m", model=tiktoken), 1000, architecture="llama")


def test_tokenizer_json_wins_where_the_two_files_disagree(tmp_path: Path, llama2: Tokenizer, spm: bytes) -> None:
    tokenizer = load_tokenizer(saved(tmp_path / "m", llama2, spm), 1000, architecture="llama")
    assert "tokenizer.model and tokenizer.json disagree on" in tokenizer.notes[0]
    assert tokenizer.tokens[999] == llama2.id_to_token(999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "SentencePiece Unigram model"),
        ({"treat_whitespace_as_suffix": True}, "puts ▁ behind words"),
    ],
)
def test_other_sentencepiece_models_stop_by_name(
    options: dict[str, object], message: str, tmp_path: Path, training_texts: list[str]
) -> None:
    model = sentencepiece_model(training_texts, **{"vocab_size": 600} | options)
    with pytest.raises(UnsupportedError, match=message):
        load_tokenizer(saved(tmp_path / "m", model=model), 600, architecture="t5")


def test_normalising_sentencepiece_models_are_noted(tmp_path: Path, training_texts: list[str]) -> None:
    model = sentencepiece_model(
        training_texts, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, vocab_size=600
    )
    notes = load_tokenizer(saved(tmp_path / "m", model=model), 600, architecture="llama").notes
    assert [note[:32] for note in notes] == ["tokenizer.model normalises chara", "tokenizer.model removes repeated"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " "}, "content": "▁"}}, "normalizer 'Replace'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer 'Whitespace' is not known"),
        ({"normalizer": None}, "turns spaces into ▁"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "Metaspace writes '_'"),
        ({"post_processor": {"type": "BertProcessing"}}, "post-processor 'BertProcessing' is not known"),
    ],
)
def test_unknown_parts_stop_by_name(parts: dict[str, object], message: str, tmp_path: Path, llama2: Tokenizer) -> None:
    with pytest.raises(UnsupportedError, match=message):
        load_tokenizer(changed(saved(tmp_path / "m", llama2), **parts), 1000, architecture="llama")


def test_a_post_processor_that_adds_more_than_bos_is_refused(tmp_path: Path, llama2: Tokenizer) -> None:
    source = Tokenizer.from_str(llama2.to_str())
    pairs = [("<s>", 1), ("</s>", 2)]
    source.post_processor = processors.TemplateProcessing(single="</s> <s> $A", special_tokens=pairs)
    with pytest.raises(UnsupportedError, match=r"adds the ids \[2, 1\] in front"):
        load_tokenizer(saved(tmp_path / "m", source), 1000, architecture="llama")


@pytest.mark.parametrize("cut", [0, 1, 2, 7, 100, 5000])
def test_a_truncated_sentencepiece_model_is_refused(cut: int, tmp_path: Path, spm: bytes) -> None:
    with pytest.raises((FormatError, UnsupportedError), match="not a SentencePiece model"):
        load_tokenizer(saved(tmp_path / "m", model=spm[:cut]), 1000, architecture="llama")


@given(data=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_as_a_sentencepiece_model_end_in_a_known_error_or_a_tokenizer(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises((FormatError, UnsupportedError)):
        load_tokenizer(folder, 10, architecture="llama")


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no tokenizer\.model and no tokenizer\.json for this llama model"):
        load_tokenizer(tmp_path, 10, architecture="llama")


def test_the_old_layout_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="save_pretrained"):
        load_tokenizer(tmp_path, 10, architecture="llama")

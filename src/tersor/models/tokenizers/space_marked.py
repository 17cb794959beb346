"""Tokenizers that write ▁ for a space (Llama 2, Mistral, TinyLlama, Phi-3, Gemma): GGUF tokenizer model "llama".

llama.cpp merges, among neighbours whose union is a token, the pair whose union has the highest score, leftmost first. A
SentencePiece BPE model gives these scores. For merges of a tokenizer.json, the score of a token is minus the rank of
the first merge that makes it: a string's own merges decide which two parts can ever stand beside each other there, so
that asking for the union instead of the pair picks the same merges, as long as each token is made by its merges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tersor.core.errors import UnsupportedError
from tersor.models.tokenizers.byte_pair import BytePair
from tersor.models.tokenizers.gguf_tokenizer import GgufTokenizer, TokenType
from tersor.models.tokenizers.sentencepiece_model import SentencePieceModel
from tersor.models.tokenizers.source import AddedToken, TokenizerFiles, flag, mapping, sequence
from tersor.models.tokenizers.special import added_ends, chat_templates, special_ids, with_rows
from tersor.models.tokenizers.vocabulary import SPACE, Piece, Vocabulary, stripping_notes

__all__ = ["from_json", "from_model"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ALWAYS, _FIRST, _NEVER = "always", "first", "never"


def from_model(files: TokenizerFiles, model: SentencePieceModel, size: int) -> GgufTokenizer:
    """The tokenizer.model, with added tokens and the space prefix of tokenizer.json where there is one."""
    if model.kind != "BPE":
        raise UnsupportedError(
            f"{files.folder}: tokenizer.model is a SentencePiece {model.kind} model; llama.cpp's 'llama' tokenizer can "
            "only follow BPE"
        )
    if model.whitespace_suffix:
        raise UnsupportedError(f"{files.folder}: tokenizer.model puts ▁ behind words; llama.cpp only puts it in front")
    prefix = model.add_dummy_prefix
    notes: list[str] = []
    if files.has("tokenizer.json"):
        prefix, notes = _space_prefix(files, model.pieces)
    if model.has_normalizer:
        notes.append("tokenizer.model normalises characters (a compiled map), llama.cpp does not")
    if model.remove_extra_whitespaces and not files.has("tokenizer.json"):
        notes.append("tokenizer.model removes repeated spaces, llama.cpp keeps them")
    return _finish(files, dict(enumerate(model.pieces)), size, prefix, notes, model.special_ids)


def from_json(files: TokenizerFiles, size: int) -> GgufTokenizer:
    """The tokenizer.json of `files`, scores being minus the merge rank."""
    model = BytePair.read(files)
    pieces = _scored(model)
    prefix, notes = _space_prefix(files, pieces.values())
    unknown = {} if model.unknown is None else {"unk": model.vocabulary.get(model.unknown, -1)}
    return _finish(files, pieces, size, prefix, notes, {name: id_ for name, id_ in unknown.items() if id_ >= 0})


def _scored(model: BytePair) -> dict[int, Piece]:
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(model.merges):
        ranks.setdefault(left + right, rank)
    pieces = {}
    for token, id_ in model.vocabulary.items():
        kind = TokenType.NORMAL
        if token == model.unknown:
            kind = TokenType.UNKNOWN
        elif model.byte_fallback and _BYTE.fullmatch(token):
            kind = TokenType.BYTE
        # Tokens that no merge makes come last, each with a score of its own.
        pieces[id_] = Piece(token, kind, -float(ranks.get(token, len(model.merges) + id_)))
    return pieces


def _finish(  # noqa: PLR0917 - the parts that both sources end in
    files: TokenizerFiles,
    pieces: Mapping[int, Piece],
    size: int,
    prefix: bool,
    notes: list[str],
    defaults: Mapping[str, int],
) -> GgufTokenizer:
    merged, added, left = with_rows(files, pieces, size)
    alphabet = _alphabet(pieces.values())
    if alphabet is not None:
        notes.append(
            "the vocabulary lacks byte tokens: llama.cpp aborts on any character that is not a token, where the source "
            "gives the unknown token"
        )
    notes.extend((*stripping_notes(added), *left, *_normalized_notes(added, prefix)))
    vocabulary = Vocabulary.assemble(merged, size, files.folder, marks_spaces=True)
    special, choices = special_ids(files, vocabulary, defaults)
    add_bos, add_eos, contradictions = added_ends(files, special)
    return GgufTokenizer(
        model="llama",
        pre=None,
        tokens=vocabulary.tokens,
        types=vocabulary.types,
        scores=vocabulary.scores,
        merges=None,
        special_ids=special,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=prefix,
        chat_templates=chat_templates(files),
        alphabet=alphabet,
        notes=(*notes, *choices, *contradictions),
    )


def _alphabet(pieces: Iterable[Piece]) -> frozenset[str] | None:
    """Characters with a token of their own; None if bytes stand in for all others."""
    kinds = [(piece.text, piece.type) for piece in pieces]
    if sum(kind is TokenType.BYTE for _, kind in kinds) == 256:
        return None
    return frozenset(text.replace(SPACE, " ") for text, _ in kinds if len(text) == 1)


def _normalized_notes(added: Iterable[AddedToken], prefix: bool) -> list[str]:
    names = [token.content for token in added if token.normalized and token.special]
    if not names or not prefix:
        return []
    shown = ", ".join(names[:4])
    note = f"the special tokens {shown} are found only behind a space that the normalizer adds; in llama.cpp anywhere"
    return [note]


def _space_prefix(files: TokenizerFiles, pieces: Iterable[Piece]) -> tuple[bool, list[str]]:
    """Whether tokenizer.json puts ▁ before the text, and what llama.cpp does otherwise.

    UnsupportedError names any normalizer or pre-tokenizer beyond the three known ways to write ▁.
    """
    steps = _steps(files, "normalizer", "normalizers")
    scheme = _NEVER
    marked = False
    notes: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            scheme = _ALWAYS
        elif kind == "Replace" and step.get("content") == SPACE and step.get("pattern") == {"String": " "}:
            marked = True
        else:
            raise UnsupportedError(f"{files.folder}: normalizer {kind!r} ({str(dict(step))[:80]}) is not known here")
    for step in _steps(files, "pre_tokenizer", "pretokenizers"):
        kind = step.get("type")
        if kind == "Metaspace":
            scheme, marked = _metaspace(files, step, pieces), True
            notes.append(
                "a text that begins with a space gets no second one in the source (Metaspace), but does in llama.cpp"
            )
            if scheme == _FIRST:
                notes.append("text after a special token gets a space in llama.cpp, but not in the source")
        elif not (kind == "Split" and step.get("pattern") == {"String": " "} and marked):
            raise UnsupportedError(f"{files.folder}: pre-tokenizer {kind!r} is not known for tokens marked with ▁")
    if not marked:
        raise UnsupportedError(f"{files.folder}: neither a normalizer nor a pre-tokenizer turns spaces into ▁")
    return scheme != _NEVER, notes if scheme != _NEVER else []


def _metaspace(files: TokenizerFiles, step: Mapping[str, object], pieces: Iterable[Piece]) -> str:
    if step.get("replacement", SPACE) != SPACE:
        raise UnsupportedError(f"{files.folder}: Metaspace writes {step.get('replacement')!r:.20}; only ▁ is known")
    if flag(step.get("split"), "Metaspace.split", default=True):
        inner = [piece.text for piece in pieces if SPACE in piece.text[1:] and piece.type is TokenType.NORMAL]
        if inner:
            raise UnsupportedError(
                f"{files.folder}: Metaspace splits at every ▁, but tokens such as {inner[0]!r:.40} hold one inside, "
                "which llama.cpp would make"
            )
    scheme = step.get("prepend_scheme")
    if scheme is None:
        return _ALWAYS if flag(step.get("add_prefix_space"), "Metaspace.add_prefix_space", default=True) else _NEVER
    if scheme not in (_ALWAYS, _FIRST, _NEVER):
        raise UnsupportedError(f"{files.folder}: Metaspace with prepend_scheme={scheme!r:.20} is not known")
    return str(scheme)


def _steps(files: TokenizerFiles, key: str, inner: str) -> list[Mapping[str, object]]:
    where = f"tokenizer.json: {key}"
    node = mapping(files.tokenizer.get(key), where)
    if not node:
        return []
    if node.get("type") != "Sequence":
        return [node]
    return [mapping(step, where) for step in sequence(node.get(inner), f"{where}.{inner}")]


def agreement(files: TokenizerFiles, model: SentencePieceModel, folder: Path) -> str:
    """Empty if tokenizer.json has the pieces of tokenizer.model under the same ids, else a sentence."""
    vocabulary = mapping(mapping(files.tokenizer.get("model"), "model").get("vocab"), "model.vocab")
    wrong = [id_ for id_, piece in enumerate(model.pieces) if vocabulary.get(piece.text) != id_]
    known = {token.id: token.content for token in files.added_tokens}
    wrong = [id_ for id_ in wrong if known.get(id_) != model.pieces[id_].text]
    if not wrong:
        return ""
    return (
        f"{folder}: tokenizer.model and tokenizer.json disagree on {len(wrong)} tokens, first id {wrong[0]} "
        f"({model.pieces[wrong[0]].text!r:.40}); tokenizer.json was used, as transformers does"
    )

"""Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, tekken, Phi-4 …): GGUF tokenizer model "gpt2"."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.core.errors import UnsupportedError
from tersor.models.tokenizers.byte_pair import BytePair
from tersor.models.tokenizers.gguf_tokenizer import GgufTokenizer, TokenType
from tersor.models.tokenizers.pretokenizers import recognise, splits
from tersor.models.tokenizers.source import TokenizerFiles, mapping, sequence
from tersor.models.tokenizers.special import added_ends, chat_templates, special_ids, with_rows
from tersor.models.tokenizers.vocabulary import Piece, Vocabulary, stripping_notes

__all__ = ["from_json"]

_VALID_BYTES = frozenset(range(256)) - {0xC0, 0xC1} - frozenset(range(0xF5, 256))


def from_json(files: TokenizerFiles, size: int) -> GgufTokenizer:
    """The byte-level tokenizer.json of `files`; UnsupportedError names a step or normalizer that llama.cpp lacks."""
    model = BytePair.read(files)
    folder = str(files.folder)
    notes = _normalizer_notes(files)
    row, agrees = recognise(
        splits(files.tokenizer.get("pre_tokenizer"), folder), ignore_merges=model.ignore_merges, folder=folder
    )
    if row.inexact:
        notes.append(row.inexact)
    added_ids = {token.id for token in files.added_tokens}
    plain = {token: id_ for token, id_ in model.vocabulary.items() if id_ not in added_ids}
    if not agrees and (count := model.unreachable(plain)):
        notes.append(
            f"ignore_merges is {model.ignore_merges} here but {row.ignore_merges} in llama.cpp's {row.pre!r}: "
            f"{count} tokens that the merges do not build may be used by one and not by the other"
        )
    pieces = {id_: Piece(token, TokenType.NORMAL) for token, id_ in model.vocabulary.items()}
    merged, added, left = with_rows(files, pieces, size)
    notes.extend((*_byte_notes(plain), *stripping_notes(added), *left))
    vocabulary = Vocabulary.assemble(merged, size, files.folder, marks_spaces=False)
    special, choices = special_ids(files, vocabulary, {})
    add_bos, add_eos, contradictions = added_ends(files, special)
    return GgufTokenizer(
        model="gpt2",
        pre=row.pre,
        tokens=vocabulary.tokens,
        types=vocabulary.types,
        scores=None,
        merges=tuple(_joined(pair, folder) for pair in model.merges),
        special_ids=special,
        add_bos=bool(add_bos),
        add_eos=bool(add_eos),
        add_space_prefix=None,
        chat_templates=chat_templates(files),
        notes=(*notes, *choices, *contradictions),
    )


def _joined(pair: tuple[str, str], folder: str) -> str:
    """A merge as llama.cpp reads it; its tokens hold no space, since byte-level text writes Ġ for one."""
    if any(" " in part for part in pair):
        raise UnsupportedError(f"{folder}: the merge {pair!r:.80} holds a space, which a byte-level merge cannot")
    return " ".join(pair)


def _normalizer_notes(files: TokenizerFiles) -> list[str]:
    where = "tokenizer.json: normalizer"
    node = mapping(files.tokenizer.get("normalizer"), where)
    steps = (
        [mapping(step, where) for step in sequence(node.get("normalizers"), where)] if _is_sequence(node) else [node]
    )
    notes = []
    for kind in (step.get("type") for step in steps if step):
        if kind != "NFC":
            raise UnsupportedError(f"{files.folder}: normalizer {kind!r} is not known for byte-level BPE; NFC is")
        notes.append("the source composes characters first (NFC), llama.cpp does not: decomposed accents differ")
    return notes


def _is_sequence(node: Mapping[str, object]) -> bool:
    return node.get("type") == "Sequence"


def _byte_notes(tokens: Mapping[str, int]) -> list[str]:
    missing = sorted(byte for byte, letter in _letters().items() if letter not in tokens and byte in _VALID_BYTES)
    if not missing:
        return []
    shown = ", ".join(f"{byte:02X}" for byte in missing[:8]) + (" …" if len(missing) > 8 else "")
    return [f"{len(missing)} bytes have no token ({shown}): llama.cpp leaves them out of the text"]


def _letters() -> dict[int, str]:
    """The letter that stands for each byte: itself if printable in Latin-1, else the next from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}

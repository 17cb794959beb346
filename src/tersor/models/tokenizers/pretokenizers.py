"""Which of llama.cpp's splitting rules a byte-level tokenizer.json follows, told from its structure.

A tokenizer splits text with one or more steps before it merges; llama.cpp has a fixed list of such step lists, each
known by a name (`tokenizer.ggml.pre`). Both sides are written here as a tuple of regexes, applied one after another,
each cutting out its matches and leaving the gaps as pieces. A newly trained tokenizer with known steps is recognised.

Source: the regexes were read from llama.cpp's src/llama-vocab.cpp (0c1e57098); where a name's C++ regexes differ from
the tokenizer.json it stands for, `inexact` says on which text. Names that llama.cpp treats alike (starcoder, refact,
command-r, codeshell, exaone, minerva-7b as smollm; mpt, olmo, phi-2, jais, trillion as gpt-2; falcon3, pixtral, lfm2 as
llama-bpe; deepseek-r1-qwen, hunyuan, stablelm2, megrez as qwen2) have one row.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from tersor.core.errors import UnsupportedError
from tersor.models.tokenizers.source import flag, mapping, sequence, text

__all__ = ["ROWS", "Row", "recognise", "splits"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + "|" + _WORD + r"|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTION + "|" + _WORD + r"|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _SLASH_TAIL
_O200K = (
    f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?" + r"|\p{N}{1,3}" + _SLASH_TAIL
)
_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = _CONTRACTION + "|" + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHOWN = 2000
_CASE = (
    "llama.cpp knows upper and lower case only in ASCII here, and does not count combining marks as letters: words "
    "with capitals other than A to Z after a small letter, or with combining marks, are split otherwise"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One of llama.cpp's rules.

    pre            its name
    splits         regexes applied one after another
    ignore_merges  a piece that is a token as it stands is taken whole, whatever the merges say
    inexact        a sentence on the text that llama.cpp splits otherwise; empty if none is known
    """

    pre: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    inexact: str = ""


ROWS: tuple[Row, ...] = (
    Row("gpt-2", (_GPT2,)),
    Row("smollm", (r"\p{N}", _GPT2)),
    Row("llama-bpe", (_LLAMA3,), ignore_merges=True),
    Row("dbrx", (_LLAMA3,)),
    Row("qwen2", (_QWEN2,)),
    Row("qwen35", (_QWEN35,)),
    Row("tekken", (_TEKKEN,), ignore_merges=True, inexact=_CASE),
    Row("gpt-4o", (_O200K,), inexact=_CASE),
    Row("deepseek-v3", (r"\p{N}{1,3}", _KANA, _DEEPSEEK3)),
    Row("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    Row("seed-coder", (_SEED,)),
    Row("ufakzeka", (_WORD + r"|\p{N}" + _TAIL,)),
    Row("minicpm5", (r"\p{N}{1,3}", _CONTRACTION + "|" + _WORD + r"|\p{N}+" + _TAIL), ignore_merges=True),
)
"""Every structure that is recognised; where two rows split alike, `ignore_merges` tells them apart."""

# Spellings that match the same text everywhere, and the one used above. `\s*[\r\n]` takes a whole run of white space up
# to its last line end, with or without the plus; a possessive `?+` or `++` never had anything to give back.
_SPELLINGS = (
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTION),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTION),
    ("?+", "?"),
    ("++", "+"),
    (r"\p{N}{1}", r"\p{N}"),
    ("\r", r"\r"),
    ("\n", r"\n"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
)


def splits(node: object, folder: str) -> tuple[str, ...]:
    """The regexes of a tokenizer.json's `pre_tokenizer`, in our spelling; UnsupportedError names an unknown step."""
    found: list[str] = []
    steps = _flat(mapping(node, "tokenizer.json: pre_tokenizer"))
    for index, step in enumerate(steps):
        kind = text(step.get("type"), "tokenizer.json: pre_tokenizer.type")
        if kind == "ByteLevel":
            if index != len(steps) - 1:
                raise UnsupportedError(f"{folder}: the pre-tokenizer has steps after ByteLevel: {_shown(steps)}")
            if flag(step.get("add_prefix_space"), "ByteLevel.add_prefix_space", default=True):
                raise UnsupportedError(
                    f"{folder}: ByteLevel has add_prefix_space, but llama.cpp's byte-level tokenizer adds no space"
                )
            if flag(step.get("use_regex"), "ByteLevel.use_regex", default=True):
                found.append(_GPT2)
        elif kind == "Digits" and flag(step.get("individual_digits"), "Digits.individual_digits"):
            found.append(r"\p{N}")
        elif kind == "Split":
            found.append(_split(step, folder))
        else:
            raise UnsupportedError(f"{folder}: pre-tokenizer step {kind!r} is not known: {_shown(steps)}")
    return tuple(found)


def recognise(found: tuple[str, ...], *, ignore_merges: bool, folder: str) -> tuple[Row, bool]:
    """The row that splits like `found`, and whether its `ignore_merges` agrees too.

    UnsupportedError for an unknown structure prints it and names the nearest row.
    """
    alike = [row for row in ROWS if row.splits == found]
    for row in alike:
        if row.ignore_merges == ignore_merges:
            return row, True
    if alike:
        return alike[0], False
    joined = "  then  ".join(found)[:_SHOWN] or "(no splitting at all)"
    nearest = max(ROWS, key=lambda row: difflib.SequenceMatcher(None, joined, "  then  ".join(row.splits)).ratio())
    raise UnsupportedError(
        f"{folder}: llama.cpp has no pre-tokenizer that splits with\n  {joined}\n"
        f"the nearest is {nearest.pre!r}:\n  {'  then  '.join(nearest.splits)}"
    )


def _split(step: Mapping[str, object], folder: str) -> str:
    pattern = mapping(step.get("pattern"), "Split.pattern")
    if "Regex" not in pattern:
        raise UnsupportedError(f"{folder}: a Split by {dict(pattern)!r:.80} is not known; one by Regex is")
    regex = text(pattern.get("Regex"), "Split.pattern.Regex")
    for spelling, ours in _SPELLINGS:
        regex = regex.replace(spelling, ours)
    behaviour = text(step.get("behavior"), "Split.behavior").lower()
    inverted = flag(step.get("invert"), "Split.invert")
    # Keeping the matches and dropping the gaps is the same as isolating the matches where there are no gaps.
    if (behaviour, inverted) == ("isolated", False):
        return regex
    if (behaviour, inverted) == ("removed", True) and regex.endswith(r"\s+(?!\S)|\s+"):
        return regex
    raise UnsupportedError(
        f"{folder}: Split with behavior={behaviour!r} and invert={inverted} is not known; Isolated without invert is"
    )


def _flat(node: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The steps of a pre-tokenizer, sequences (of at most a few levels) unrolled."""
    waiting, steps = [node] if node else [], []
    while waiting:
        step = waiting.pop()
        if step.get("type") == "Sequence":
            where = "tokenizer.json: pre_tokenizer.pretokenizers"
            waiting.extend(mapping(inner, where) for inner in reversed(sequence(step.get("pretokenizers"), where)))
        else:
            steps.append(step)
    return steps


def _shown(steps: list[Mapping[str, object]]) -> str:
    return ", ".join(str(step.get("type"))[:40] for step in steps[:10])

"""Is a GGUF whole and consistent? Every rule that llama.cpp holds a file to, and those it only suffers from.

Some faults stop the engine, others load and give worse text: merges that all score alike, a missing pre-tokenizer.
Source: the reader and loader of llama.cpp, the tokenizer keys of its vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tersor.core.card import Card, card_path
from tersor.core.errors import FormatError
from tersor.core.metadata import MetadataValue
from tersor.evaluation.checks.verdict import Check
from tersor.files.gguf import GgufFile, check
from tersor.files.hashing import sha256
from tersor.models.architectures import ARCHITECTURES
from tersor.models.model import layer_of
from tersor.models.tokenizers.gguf_tokenizer import SPECIAL_KEYS

__all__ = ["check_card", "check_structure"]

_KEYS = ("context_length", "embedding_length", "block_count")
_KNOWN_KEYS = ("attention.layer_norm_rms_epsilon", "attention.head_count", "feed_forward_length")
_NOT_DENSE = ("expert_feed_forward_length",)


def check_structure(path: Path) -> Check:
    """Check header, tensor table, required keys, shapes and tokenizer of the GGUF at `path`, or all its parts."""
    problems = check(path)
    if not problems:
        with GgufFile(path) as file:
            problems = [*_keys(file), *_blocks(file), *_attention(file), *_tokenizer(file)]
            numbers = {"tensors": float(len(file.tensors)), "keys": float(len(file.metadata))}
    if problems:
        return Check("structure", "failed", f"{len(problems)} rules are broken", tuple(problems))
    detail = f"{int(numbers['tensors'])} tensors and {int(numbers['keys'])} keys keep every rule of llama.cpp's loader"
    return Check("structure", "passed", detail, numbers=numbers)


def check_card(path: Path) -> Check:
    """Compare the SHA-256 of the file with the one in the Card that lies beside it."""
    place = card_path(path, "json")
    if not place.is_file():
        return Check("card", "skipped", f"no Card ({place.name}) lies beside the file")
    try:
        card = Card.from_json(place.read_text(encoding="utf-8"), place=str(place))
    except (FormatError, UnicodeDecodeError, OSError) as error:
        return Check("card", "failed", "the Card cannot be read", (str(error),))
    problems = []
    for artefact in card.artefacts:
        part = path.with_name(artefact.name)
        if not part.is_file():
            problems.append(f"{artefact.name} stands in the Card and is not there")
        elif (found := sha256(part)) != artefact.sha256:
            problems.append(f"{artefact.name} has SHA-256 {found[:16]}…, its Card says {artefact.sha256[:16]}…")
    if path.name not in [artefact.name for artefact in card.artefacts]:
        problems.append(f"{path.name} does not stand in the Card, which is of {card.artefacts[0].name}")
    if problems:
        return Check("card", "failed", "the file is not the one that its Card describes", tuple(problems))
    return Check("card", "passed", "the file is the very one that its Card describes (SHA-256)")


def _keys(file: GgufFile) -> Iterator[str]:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        yield "the key general.architecture is missing: llama.cpp cannot tell which graph to run"
        return
    is_known = architecture in {row.name for row in ARCHITECTURES}
    for name in (*_KEYS, *(_KNOWN_KEYS if is_known else ())):
        if f"{architecture}.{name}" not in file.metadata:
            if name == "feed_forward_length" and any(f"{architecture}.{key}" in file.metadata for key in _NOT_DENSE):
                continue
            yield f"the key {architecture}.{name} is missing"


def _blocks(file: GgufFile) -> Iterator[str]:
    """Check that the blocks are those that block_count announces."""
    count = _number(file.metadata, "block_count")
    if count is None:
        return
    found = {layer for name in file.tensors if (layer := layer_of(name)) is not None}
    if missing := sorted(set(range(min(count, 10_000))) - found):
        yield f"block_count is {count}, but there is no tensor of block {missing[0]}"
    if surplus := sorted(layer for layer in found if layer >= count):
        yield f"block_count is {count}, but there are tensors of block {surplus[0]}"
    if "token_embd.weight" not in file.tensors:
        yield "the tensor token_embd.weight is missing"


def _attention(file: GgufFile) -> Iterator[str]:
    """Check the rows of Q and K against heads and head length, whose defaults bite when a head has a free size."""
    query = file.tensors.get("blk.0.attn_q.weight")
    heads, hidden = (_number(file.metadata, key) for key in ("attention.head_count", "embedding_length"))
    if query is None or not heads or not hidden:
        return
    length = _number(file.metadata, "attention.key_length") or hidden // heads
    if query.shape[0] != heads * length:
        yield (
            f"blk.0.attn_q.weight has {query.shape[0]} rows; {heads} heads of {length} make {heads * length} "
            "(attention.key_length is needed where a head is not embedding_length / head_count)"
        )
    if query.shape[-1] != hidden:
        yield f"blk.0.attn_q.weight has {query.shape[-1]} columns, embedding_length is {hidden}"


def _number(metadata: Mapping[str, MetadataValue], name: str) -> int | None:
    value = metadata.get(f"{metadata.get('general.architecture')}.{name}")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tokenizer(file: GgufFile) -> Iterator[str]:
    metadata = file.metadata
    model, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if model is None:
        yield "the key tokenizer.ggml.model is missing: the file has no tokenizer"
        return
    if model in ("none", "no_vocab"):
        return
    if not isinstance(tokens, list):
        yield "the key tokenizer.ggml.tokens is missing"
        return
    if doubles := [token for token, count in Counter(tokens).items() if count > 1]:
        yield f"{len(doubles)} tokens appear twice, the first is {doubles[0]!r:.60}: llama.cpp aborts on that"
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] != len(tokens):
        yield f"there are {len(tokens)} tokens, but token_embd.weight has {embedding.shape[0]} rows"
    for name in ("token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(values, list) and len(values) != len(tokens):
            yield f"tokenizer.ggml.{name} has {len(values)} items for {len(tokens)} tokens"
    for name, key in SPECIAL_KEYS.items():
        value = metadata.get(key)
        if isinstance(value, int) and not 0 <= value < len(tokens):
            yield f"the {name} token has id {value}; ids are 0 to {len(tokens) - 1}"
    yield from _by_kind(metadata, str(model))


def _by_kind(metadata: Mapping[str, MetadataValue], model: str) -> Iterator[str]:
    """Check what each kind of tokenizer needs beyond tokens."""
    if model == "llama":
        scores = metadata.get("tokenizer.ggml.scores")
        if not isinstance(scores, list):
            yield "the key tokenizer.ggml.scores is missing: a tokenizer of kind llama merges by score"
        elif len(scores) > 300 and len(set(scores)) < 3:
            yield "all tokens have the same score: merges happen in a wrong order, and text is tokenized wrongly"
    elif model == "gpt2":
        if not isinstance(metadata.get("tokenizer.ggml.merges"), list):
            yield "the key tokenizer.ggml.merges is missing: a tokenizer of kind gpt2 needs it"
        if not metadata.get("tokenizer.ggml.pre"):
            yield "the key tokenizer.ggml.pre is missing: llama.cpp would split text by a default, which is often wrong"

"""Special ids, what encoding adds, and chat templates: the parts every kind of tokenizer has."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.core.errors import FormatError, UnsupportedError
from tersor.models.tokenizers.gguf_tokenizer import TokenType
from tersor.models.tokenizers.source import AddedToken, TokenizerFiles, flag, integer, mapping, sequence, text
from tersor.models.tokenizers.vocabulary import Piece, Vocabulary, rowless_notes, with_added

__all__ = ["added_ends", "chat_templates", "special_ids", "with_rows"]

_MOST_TEMPLATES = 32
_ENDS = ("bos", "eos")
_HARMLESS = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
_NAMES = ("bos", "eos", "unk", "sep", "pad", "mask")
_END_OF_MESSAGE = ("<|eom_id|>",)


def with_rows(
    files: TokenizerFiles, pieces: Mapping[int, Piece], size: int
) -> tuple[dict[int, Piece], list[AddedToken], list[str]]:
    """`pieces` with the added tokens, and those alone, without such as no row stands for, on which there is a note.

    size  rows of the embedding: text models cut out of others keep tokens for images that have no row

    BOS, EOS and PAD stay whatever their id is: a model that needs one without a row is broken.
    """
    needed = [_named(files, f"{name}_token") for name in (*_ENDS, "pad")]
    left = {token.id: token for token in files.added_tokens if token.id >= size and token.content not in needed}
    added = [token for token in files.added_tokens if token.id not in left]
    merged = with_added(pieces, files.added_tokens, files.folder)
    kept = {id_: piece for id_, piece in merged.items() if id_ not in left}
    return kept, added, rowless_notes(list(left.values()), size)


def special_ids(
    files: TokenizerFiles, vocabulary: Vocabulary, defaults: Mapping[str, int]
) -> tuple[dict[str, int], list[str]]:
    """Ids of the special tokens, keys as in SPECIAL_KEYS, and notes on what had to be chosen.

    defaults  ids that the vocabulary file itself states, for what the other files leave open

    The tokenizer's own files name the tokens; config.json and generation_config.json fill what they leave open. Further
    end tokens of generation_config.json become eot and eom, the latter first where the text says so; there is no third
    place. FormatError for an id beyond the vocabulary and for a BOS or EOS text that is not in it.
    """
    found: dict[str, int] = dict(defaults)
    notes: list[str] = []
    for name in _NAMES:
        content = _named(files, f"{name}_token")
        number = _number(files, f"{name}_token_id") if content is None else vocabulary.ids.get(content)
        if number is not None:
            found[name] = number
        elif content is not None and name in _ENDS:
            raise FormatError(f"{files.folder}: {name}_token is {content!r}, which is not in the vocabulary")
        elif content is not None:
            notes.append(f"{name}_token is {content!r}, which is not in the vocabulary: it was left out")
    ends, left = _other_ends(files, vocabulary.ids, found)
    found |= ends
    size = len(vocabulary.tokens)
    for name, number in (*found.items(), *(("end", number) for number in left)):
        if number >= size:
            raise FormatError(f"{files.folder}: {name} token id {number} lies outside the vocabulary of {size}")
    if left:
        named = ", ".join(f"{number} ({vocabulary.tokens[number]!r})" for number in left)
        notes.append(f"generation ends at further tokens, which a GGUF has no key for: {named}")
    return found, notes + _fill_ends(found, vocabulary)


def _fill_ends(found: dict[str, int], vocabulary: Vocabulary) -> list[str]:
    """Give BOS and EOS some harmless token if they have none: llama.cpp would take id 1, 2 or 11, whatever that is."""
    notes = []
    for name in _ENDS:
        if name in found:
            continue
        candidates = [found[other] for other in (*_ENDS, "pad", "unk") if other in found]
        candidates += [id_ for id_, kind in enumerate(vocabulary.types) if kind in _HARMLESS][:1]
        if candidates:
            found[name] = candidates[0]
            notes.append(f"no {name} token is named: {vocabulary.tokens[candidates[0]]!r} stands in for it")
        else:
            notes.append(f"no {name} token is named, and no special token could stand in: llama.cpp takes its default")
    return notes


def _named(files: TokenizerFiles, key: str) -> str | None:
    for source, name in ((files.config, "tokenizer_config.json"), (files.special_map, "special_tokens_map.json")):
        value = source.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if value is not None:
            return text(value, f"{name}: {key}")
    return None


def _number(files: TokenizerFiles, key: str) -> int | None:
    for source, name in ((files.model_config, "config.json"), (files.generation_config, "generation_config.json")):
        value = source.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None and value != -1:
            return integer(value, f"{name}: {key}")
    return None


def _other_ends(
    files: TokenizerFiles, ids: Mapping[str, int], known: Mapping[str, int]
) -> tuple[dict[str, int], list[int]]:
    """Ids of eot and eom, at both of which llama.cpp stops as at EOS, and the end tokens for which no place is left."""
    value = files.generation_config.get("eos_token_id")
    ends = value if isinstance(value, list) else [value]
    where = "generation_config.json: eos_token_id"
    numbers = [integer(end, where) for end in ends if end is not None and end != -1]
    message_ends = {ids[content] for content in _END_OF_MESSAGE if content in ids}
    found: dict[str, int] = {}
    left: list[int] = []
    for number in sorted(dict.fromkeys(numbers), key=lambda number: number not in message_ends):
        if number == known.get("eos"):
            continue
        places = ("eom", "eot") if number in message_ends else ("eot", "eom")
        free = next((place for place in places if place not in found), None)
        if free is None:
            left.append(number)
        else:
            found[free] = number
    return found, left


def added_ends(files: TokenizerFiles, special: Mapping[str, int]) -> tuple[bool | None, bool | None, list[str]]:
    """Whether encoding adds BOS in front and EOS behind, None where no file says, and notes on contradictions.

    As in transformers 5: the post-processor of tokenizer.json decides alone, and add_bos_token and add_eos_token of
    tokenizer_config.json count only without a tokenizer.json; a token that does not exist is not added.
    UnsupportedError when the post-processor adds anything but BOS and EOS, which GGUF cannot say.
    """
    bos, eos = (
        None if files.config.get(key) is None else flag(files.config.get(key), f"tokenizer_config.json: {key}")
        for key in ("add_bos_token", "add_eos_token")
    )
    if not files.has("tokenizer.json"):
        return bos and "bos" in special, eos and "eos" in special, []
    front, behind = _template(files)
    if front not in ([], [special.get("bos")]) or behind not in ([], [special.get("eos")]):
        raise UnsupportedError(
            f"{files.folder}: the post-processor adds the ids {front} in front and {behind} behind, but a GGUF can "
            f"only add BOS ({special.get('bos')}) in front and EOS ({special.get('eos')}) behind"
        )
    notes = [
        f"tokenizer_config.json says add_{name}_token={wanted}, the post-processor of tokenizer.json does otherwise; "
        "the latter counts, as in transformers 5"
        for name, wanted, ids in (("bos", bos, front), ("eos", eos, behind))
        if wanted is not None and wanted != bool(ids)
    ]
    return bool(front), bool(behind), notes


def _template(files: TokenizerFiles) -> tuple[list[int], list[int]]:
    """The ids that TemplateProcessing puts before and after a single text."""
    front: list[int] = []
    behind: list[int] = []
    for step in _steps(mapping(files.tokenizer.get("post_processor"), "tokenizer.json: post_processor")):
        kind = step.get("type")
        if kind == "ByteLevel":
            continue
        if kind != "TemplateProcessing":
            raise UnsupportedError(f"{files.folder}: post-processor {kind!r} is not known; TemplateProcessing is")
        where = "tokenizer.json: post_processor"
        table = mapping(step.get("special_tokens"), f"{where}.special_tokens")
        target = front
        for piece in sequence(step.get("single"), f"{where}.single"):
            entry = mapping(piece, f"{where}.single")
            if "Sequence" in entry:
                target = behind
                continue
            name = text(mapping(entry.get("SpecialToken"), where).get("id"), where)
            listed = sequence(mapping(table.get(name), where).get("ids"), where)
            target.extend(integer(id_, where) for id_ in listed)
    return front, behind


def _steps(node: Mapping[str, object]) -> list[Mapping[str, object]]:
    if not node:
        return []
    if node.get("type") != "Sequence":
        return [node]
    where = "tokenizer.json: post_processor.processors"
    return [mapping(step, where) for step in sequence(node.get("processors"), where)]


def chat_templates(files: TokenizerFiles) -> dict[str, str]:
    """Chat templates by name, "" the default: from chat_template.jinja, chat_template.json or tokenizer_config.json."""
    if files.has("chat_template.jinja"):
        named = {"": files.read_text("chat_template.jinja")}
        folder = files.folder / "additional_chat_templates"
        for path in sorted(folder.glob("*.jinja"))[:_MOST_TEMPLATES]:
            named[path.stem] = files.read_text(f"{folder.name}/{path.name}")
        return named
    value = files.json("chat_template.json").get("chat_template")
    if value is None:
        value = files.config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"": text(value, "chat_template")}
    named = {}
    for entry in sequence(value, "chat_template"):
        item = mapping(entry, "chat_template")
        name = text(item.get("name"), "chat_template.name")
        named["" if name == "default" else name] = text(item.get("template"), "chat_template.template")
    return named

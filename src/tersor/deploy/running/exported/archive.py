"""Archives of torch.export (.pt2), written anew with nothing in them that torch would execute.

torch.export.load unpickles, evaluates texts as Python, and calls whatever an operator's name leads to. So a file is
taken apart here: the zip by Python alone, tensors as raw bytes, every text of the graph by what it may be. What is not
known is refused; example inputs, guards and places in source code are left out.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tersor.core.errors import FormatError

__all__ = ["rewritten"]

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
TENSOR = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
MOST_JSON = 64 << 20
MOST_LETTERS = 100
MOST_EXPRESSION = 2000

NAME = re.compile(r"[\w.]{0,400}", re.ASCII)
VERSION = re.compile(r"[\w.+]{1,60}", re.ASCII)
OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized_decomposed)\.(?!from_file|save\b|__)\w+\.(?!_)\w+"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.sym_(?:int|float|max|min|not|sum)|math\.(?:ceil|floor|trunc)",
    re.ASCII,
)
"""What a node may call: none of these reaches beyond tensors, numbers and texts (of aten, from_file and save would)."""
LETTERS = re.compile(r"[\w()', =+\-*/<>]*", re.ASCII)
WORDS = re.compile(
    r"\d+|[su]\d+|Symbol|Integer|Add|Mul|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min"
    r"|True|False|integer|positive|nonnegative|negative|zero|real|finite"
)
"""Of the arithmetic of sizes; powers are not among them, which could be made to take for ever."""
TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def rewritten(path: Path) -> io.BytesIO:
    """Return the archive at `path` as torch may load it; FormatError names what is refused."""
    try:
        with zipfile.ZipFile(path) as source:
            members = _members(path, source)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path.name}: no archive of torch.export: {error}") from error
    model = _parsed(path, members, MODEL)
    graph = model.get("graph_module")
    if not isinstance(graph, dict) or not isinstance(graph.get("graph"), dict):
        raise FormatError(f"{path.name}: {MODEL} holds no graph")
    model["guards_code"] = []
    nodes = graph["graph"].get("nodes")
    for node in nodes if isinstance(nodes, list) else ():
        if isinstance(node, dict):
            node["metadata"] = {}
    _check(path, MODEL, model)
    members[MODEL] = json.dumps(model).encode()
    members[SAMPLES] = b""
    for name in CONFIGS:
        config = _parsed(path, members, name)
        _check(path, name, config)
        members[name] = json.dumps(config).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for name, data in members.items():
            target.writestr(f"net/{name}", data)
    made.seek(0)
    return made


def _members(path: Path, source: zipfile.ZipFile) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in source.infolist():
        _, _, name = entry.filename.partition("/")
        if name.startswith("extra/") or name == SAMPLES:
            continue
        if not (name in (MODEL, *CONFIGS, *PLAIN) or TENSOR.fullmatch(name)):
            raise FormatError(f"{path.name}: {entry.filename[:80]!r} is no part of a net that is loaded here")
        if entry.compress_type != zipfile.ZIP_STORED or name in found:
            raise FormatError(f"{path.name}: {name} is packed, or there twice")
        found[name] = source.read(entry)
    return found


def _parsed(path: Path, members: dict[str, bytes], name: str) -> dict[str, Any]:
    data = members.get(name, b"")
    if not data or len(data) > MOST_JSON:
        raise FormatError(
            f"{path.name}: {name} is not there or too large; save it with torch.export.save of torch 2.8+"
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name}: {name} is no JSON") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path.name}: {name} is no object")
    return found


def _is_expression(text: str) -> bool:
    if len(text) > MOST_EXPRESSION or not LETTERS.fullmatch(text) or "**" in text:
        return False
    return all(WORDS.fullmatch(word) for word in re.findall(r"\w+", text))


def _is_structure(text: str) -> bool:
    """Whether a text says how tensors lie in tuples, lists and dictionaries, and in nothing else."""
    try:
        version, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict) or set(one) != {"type", "context", "children_spec"} or one["type"] not in TYPES:
            return False
        if one["context"] not in (None, "null") and not re.fullmatch(r'[\w", \[\]]*', str(one["context"]), re.ASCII):
            return False
        if not isinstance(one["children_spec"], list):
            return False
        waiting += one["children_spec"]
    return bool(version == 1)


def _is_name(text: str) -> bool:
    return bool(NAME.fullmatch(text)) and not any(word[:2] == word[-2:] == "__" for word in text.split("."))


def _is_version(text: str) -> bool:
    return bool(VERSION.fullmatch(text))


def _is_any(text: str) -> bool:
    return len(text) <= MOST_LETTERS


def _is_operator(text: str) -> bool:
    return bool(OPERATOR.fullmatch(text))


TEXTS: dict[str, Callable[[str], bool]] = {
    "name": _is_name, "fqn": _is_name, "parameter_name": _is_name, "buffer_name": _is_name,
    "tensor_constant_name": _is_name, "path_name": _is_name, "type": _is_name, "verifiers": _is_name,
    "forward_arg_names": _is_name, "torch_version": _is_version,
    "as_name": _is_name, "as_string": _is_any, "target": _is_operator, "expr_str": _is_expression,
    "in_spec": _is_structure, "out_spec": _is_structure,
}  # fmt: skip
"""Key → whether the text behind it, or in the list behind it, is what it may be. Others have no texts."""


def _check(path: Path, place: str, document: dict[str, Any]) -> None:
    for key, value in _leaves(document):
        if key == "use_pickle" and value is not False:
            raise FormatError(f"{path.name}: {place}: a tensor is a pickle, which is never opened")
        if isinstance(value, str):
            is_right = TEXTS.get(key)
            if is_right is None or not is_right(value):
                raise FormatError(
                    f"{path.name}: {place}: {key} {value[:80]!r} is not among what is run from a file; save the net as "
                    "ONNX instead"
                )


def _leaves(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no container with the key that it stands behind, and the keys themselves as names."""
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            yield from (("name", name) for name in value)
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, one) for one in value]
        else:
            yield key, value

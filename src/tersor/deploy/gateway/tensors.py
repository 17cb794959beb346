"""Tensors of the Open Inference Protocol: in JSON, or as bytes behind it (the binary tensor data extension).

Source: kserve/open-inference-protocol, and Triton's protocol extensions.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import EngineError
from tersor.deploy.gateway.bodies import json_of
from tersor.deploy.running.datatypes import NAMES
from tersor.deploy.running.supervised import RequestError
from tersor.deploy.running.tensors import tensor

__all__ = ["Infer", "parsed", "written"]

DIGITS = {"<f2": "%.5g", "<f4": "%.9g"}
"""As many as tell all values of a type apart."""
BAD_REQUEST = 400
MOST_DIGITS = 18
"""Of a size; numbers of thousands of them are none that Python reads."""


@dataclass(frozen=True, slots=True)
class Infer:
    """A request.

    inputs   as an engine gets them: name, dtype, shape
    payload  their bytes
    outputs  those that are wanted, and whether as bytes; None: all
    binary   whether outputs go as bytes where nothing else is said
    """

    inputs: tuple[dict[str, Any], ...]
    payload: bytes
    outputs: Mapping[str, bool] | None
    binary: bool
    number: str


def parsed(body: bytes, header: str | None, declared: Sequence[Mapping[str, Any]]) -> Infer:
    """Read a request for a model whose inputs are `declared`; RequestError names what is wrong.

    header  of HTTP, Inference-Header-Content-Length: bytes of JSON before those of tensors; None: all is JSON
    """
    size = _size(header, len(body))
    given = json_of(body[:size])
    if not isinstance(given, dict) or not isinstance(given.get("inputs"), list):
        raise RequestError("the body must be an object with a list of 'inputs'", BAD_REQUEST)
    rest, arrays = memoryview(body)[size:], []
    known = {str(one["name"]): one for one in declared}
    for entry in given["inputs"]:
        array, rest = tensor(entry, known, rest)
        if not np.isfinite(array).all():  # what a net makes of it would be counted against the net
            kind = known[entry["name"]]["datatype"]
            raise RequestError(f"{entry['name']}: NaN, infinity or a number that {kind} has no room for", BAD_REQUEST)
        arrays.append((str(entry["name"]), array))
    if rest:
        raise RequestError(f"{len(rest)} bytes belong to no input", BAD_REQUEST)
    names = [name for name, _ in arrays]
    if sorted(names) != sorted(known):
        raise RequestError(f"inputs {', '.join(names) or 'none'} given, {', '.join(known)} wanted", BAD_REQUEST)
    inputs = tuple({"name": name, "dtype": array.dtype.str, "shape": list(array.shape)} for name, array in arrays)
    wanted, binary = _outputs(given)
    return Infer(
        inputs, b"".join(array.tobytes() for _, array in arrays), wanted, binary, str(given.get("id", ""))[:128]
    )


def _size(header: str | None, total: int) -> int:
    if header is None:
        return total
    is_size = header.isascii() and header.isdigit() and len(header) <= MOST_DIGITS
    if not is_size or int(header) > total:
        raise RequestError(f"Inference-Header-Content-Length {header[:20]!r} is no part of {total} bytes", BAD_REQUEST)
    return int(header)


def _outputs(given: Mapping[str, Any]) -> tuple[dict[str, bool] | None, bool]:
    """Which outputs are wanted, and how."""
    parameters = given.get("parameters")
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    listed = given.get("outputs")
    if not listed:
        return None, binary
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in listed
    ):
        raise RequestError("'outputs' must be a list of objects with names", BAD_REQUEST)
    found = {}
    for one in listed:
        own = one.get("parameters")
        found[one["name"]] = own["binary_data"] is True if isinstance(own, dict) and "binary_data" in own else binary
    return found, binary


def written(
    model: str, version: str, request: Infer, outputs: Sequence[Mapping[str, Any]], payload: bytes
) -> tuple[bytes, int | None]:
    """Return the body of a response, and the bytes of JSON in it where bytes of tensors follow."""
    entries, tail, at = [], [], 0
    for one in outputs:
        kind = np.dtype(one["dtype"])
        size = kind.itemsize * math.prod(one["shape"])
        data = payload[at : at + size]
        at += size
        # A JSON encoder for each of these few words would take longer than all else here.
        entry = f'{{"name": {_quoted(one["name"])}, "datatype": "{NAMES[kind.str]}", "shape": {list(one["shape"])}'
        if request.binary if request.outputs is None else request.outputs[one["name"]]:
            entries.append(f'{entry}, "parameters": {{"binary_data_size": {size}}}}}')
            tail.append(data)
        else:
            array = np.frombuffer(data, kind)
            if not np.isfinite(array).all():
                raise EngineError(f"{one['name']} has NaN or infinity, which JSON cannot say: ask for binary data")
            entries.append(f'{entry}, "data": [{_numbers(array)}]}}')
    told = f'"model_name": {_quoted(model)}, "model_version": {_quoted(version)}'
    if request.number:
        told += f', "id": {json.dumps(request.number)}'
    text = f'{{{told}, "outputs": [{", ".join(entries)}]}}'.encode()
    return (text + b"".join(tail), len(text)) if tail else (text, None)


_quoted = functools.lru_cache(maxsize=1024)(json.dumps)


def _numbers(array: npt.NDArray[Any]) -> str:
    """Return numbers as JSON has them; floats with the digits that tell them apart, which takes half of the time.

    >>> _numbers(np.array([0.1, 2, 2**-30], np.float32)), _numbers(np.array([True, False]))
    ('0.100000001, 2, 9.31322575e-10', 'true, false')
    """
    digits, values = DIGITS.get(array.dtype.str), array.tolist()
    if digits is None or np.signbit(array[array == 0]).any():  # readers take -0 for a whole number, without a sign
        return json.dumps(values)[1:-1]
    return ", ".join([digits] * len(values)) % tuple(values)

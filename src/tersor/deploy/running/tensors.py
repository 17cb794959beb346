"""Tensors as the Open Inference Protocol has them in requests and answers: an object in JSON, and bytes behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.deploy.running.datatypes import KINDS
from tersor.deploy.running.supervised import RequestError

__all__ = ["MOST_AXES", "tensor"]

BAD_REQUEST = 400
MOST_AXES = 16


def tensor(
    entry: object, known: Mapping[str, Mapping[str, Any]], rest: memoryview
) -> tuple[npt.NDArray[Any], memoryview]:
    """Read one tensor of a request or answer; return it and the bytes behind it. RequestError names what is wrong.

    known  name → what is declared of it: "datatype", "shape"
    rest   the bytes behind the JSON that were not read yet
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise RequestError("each input must be an object with a name", BAD_REQUEST)
    name, shape = entry["name"], entry.get("shape")
    declared = known.get(name)
    if declared is None:
        raise RequestError(f"no input {name[:80]!r}; there are {', '.join(known)}", BAD_REQUEST)
    if entry.get("datatype") != declared["datatype"] or entry["datatype"] not in KINDS:
        raise RequestError(f"{name}: {declared['datatype']} is wanted, not {entry.get('datatype')!r:.40}", BAD_REQUEST)
    kind = np.dtype(KINDS[entry["datatype"]])
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise RequestError(f"{name}: a shape is a list of sizes, not {shape!r:.80}", BAD_REQUEST)
    fits = len(shape) == len(declared["shape"]) and all(
        b in (-1, a) for a, b in zip(shape, declared["shape"], strict=True)
    )
    if not fits:
        raise RequestError(f"{name}: shape {declared['shape']} is wanted, not {shape!r:.80}", BAD_REQUEST)
    count, parameters = math.prod(shape), entry.get("parameters") or {}
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if size != count * kind.itemsize or size > len(rest):
            raise RequestError(f"{name}: {count * kind.itemsize} bytes are wanted, {size!r:.20} given", BAD_REQUEST)
        return np.frombuffer(rest[:size], kind).reshape(shape), rest[size:]
    return _of_json(name, entry.get("data"), kind, count).reshape(shape), rest


def _of_json(name: str, data: object, kind: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    try:
        found = np.asarray(data)
        if kind == np.uint64 and found.dtype.kind in "fO":  # numpy has no other common type for small and large ones
            exact = np.asarray(data, object)
            found = exact.astype(kind) if all(type(number) is int for number in exact.flat) else found
        whole = found.dtype.kind in "biu" or (kind.kind == "f" and found.dtype.kind == "f")
        if found.size != count or not (whole or found.size == 0):
            raise ValueError(f"{count} numbers are wanted")
        with np.errstate(over="ignore"):  # infinite then, which is for the caller to judge
            made = found.astype(kind)
        if kind.kind != "f" and (made != found).any():
            raise ValueError("a number is out of range")
    except (ValueError, OverflowError, TypeError) as error:
        raise RequestError(
            f"{name}: {count} numbers of type {kind.name} are wanted ({str(error)[:80]})", BAD_REQUEST
        ) from error
    return np.ascontiguousarray(made)

"""Servers of the Open Inference Protocol: tensors as bytes where they take them so, in JSON else."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from tersor.core.errors import EngineError
from tersor.deploy.running.datatypes import KINDS, NAMES
from tersor.deploy.running.remote.link import PROBE_S, Link, WrongRemoteError, parsed
from tersor.deploy.running.supervised import Answer, RequestError
from tersor.deploy.running.tensors import MOST_AXES, tensor

__all__ = ["V2"]

MOST_BYTES = 64 << 20
"""Of an answer with tensors."""
BAD_REQUEST = 400
HEADER = "Inference-Header-Content-Length"


class V2:
    """One model of such a server."""

    def __init__(self, model: str) -> None:
        self._model = quote(model, safe="")
        self._takes_bytes = False
        self._outputs: dict[str, dict[str, Any]] = {}

    async def facts(self, link: Link) -> dict[str, Any]:
        """Ask whether the model is ready, and what its inputs and outputs are."""
        path = link.address.below(f"/models/{self._model}", "/v2")
        async with link.asked(f"{path}/ready", silence=min(PROBE_S, link.answer_s)) as arriving:
            await arriving.whole()
        server, model = await link.got(link.address.below("", "/v2")), await link.got(path)
        try:
            found = {key: [_declared(row) for row in model[key]] for key in ("inputs", "outputs")}
            extensions = server.get("extensions") or []
            self._takes_bytes = "binary_tensor_data" in extensions
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise WrongRemoteError(f"{link.name}: its model cannot be asked from here ({str(error)[:120]})") from error
        self._outputs = {row["name"]: row for row in found["outputs"]}
        return {**found, "platform": str(model.get("platform", ""))[:80]}

    async def answer(self, link: Link, request: dict[str, Any], payload: bytes) -> AsyncGenerator[Answer, None]:
        """Yield the outputs."""
        wanted = request.get("outputs") or list(self._outputs)
        absent = sorted(set(wanted) - set(self._outputs))
        if absent:
            raise RequestError(f"no output {', '.join(absent)}; there are {', '.join(self._outputs)}", BAD_REQUEST)
        body, size = self._written(request["inputs"], wanted, payload)
        headers = {} if size is None else {HEADER: str(size), "Content-Type": "application/octet-stream"}
        path = link.address.below(f"/models/{self._model}/infer", "/v2")
        async with link.asked(path, body, headers, most=MOST_BYTES) as arriving:
            data = await arriving.whole()
            yield self._read(link.name, wanted, data, arriving.fields.get(HEADER.lower().encode()))

    def _written(self, inputs: Any, wanted: list[str], payload: bytes) -> tuple[bytes, int | None]:
        """The body of a request, and the bytes of JSON in it where others follow."""
        rows, at = [], 0
        for one in inputs:
            kind = np.dtype(one["dtype"])
            size = kind.itemsize * math.prod(one["shape"])
            row: dict[str, Any] = {"name": one["name"], "shape": list(one["shape"]), "datatype": NAMES[kind.str]}
            if self._takes_bytes:
                row["parameters"] = {"binary_data_size": size}
            else:
                array = np.frombuffer(payload, kind, math.prod(one["shape"]), at)
                if not np.isfinite(array).all():
                    raise RequestError(f"{one['name']}: the server takes neither NaN nor infinity", BAD_REQUEST)
                row["data"] = array.tolist()
            rows.append(row)
            at += size
        outputs = [{"name": name, "parameters": {"binary_data": self._takes_bytes}} for name in wanted]
        text = json.dumps({"inputs": rows, "outputs": outputs}).encode()
        return (text + payload, len(text)) if self._takes_bytes else (text, None)

    def _read(self, name: str, wanted: list[str], data: bytes, header: bytes | None) -> Answer:
        """The outputs in the order in which they are wanted; EngineError where they are not those."""
        if header is not None and (not header.isdigit() or len(header) > 18 or int(header) > len(data)):
            raise EngineError(f"{name}: an answer whose {HEADER} is no part of it")
        size = len(data) if header is None else int(header)
        found, rest, arrays = parsed(name, data[:size]), memoryview(data)[size:], {}
        try:
            for entry in found["outputs"]:
                array, rest = tensor(entry, self._outputs, rest)
                arrays[entry["name"]] = array
        except (RequestError, KeyError, TypeError) as error:
            raise EngineError(f"{name}: an answer that is wrong: {str(error)[:200]}") from error
        if rest or not set(wanted) <= set(arrays):
            raise EngineError(f"{name}: an answer with other outputs than were asked for")
        outputs = [{"name": one, "shape": list(arrays[one].shape), "dtype": arrays[one].dtype.str} for one in wanted]
        return {"outputs": outputs}, b"".join(arrays[one].tobytes() for one in wanted)


def _declared(row: Mapping[str, Any]) -> dict[str, Any]:
    name, kind, shape = row["name"], row["datatype"], row["shape"]
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) > MOST_AXES:
        raise TypeError("metadata of another shape than the protocol's")
    if kind not in KINDS:
        raise ValueError(f"{name[:40]} has type {kind!r:.20}; there are {', '.join(KINDS)}")
    return {"name": name, "datatype": kind, "shape": [int(size) if int(size) >= 0 else -1 for size in shape]}

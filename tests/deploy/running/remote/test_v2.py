"""Tensors from other servers: as bytes or JSON, right or refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.deploy.running.supervised import RequestError

from ...load.server import Behave, Request, reply, serve
from .asking import closing, outcome, played, remote

X = {"name": "x", "dtype": "<f4", "shape": [1, 2]}
Y = {"name": "y", "datatype": "FP32", "shape": [-1, 2]}
META = {"name": "there", "platform": "p", "inputs": [{**Y, "name": "x"}], "outputs": [Y]}


def tensors(infer: bytes | Behave, meta: Any = META, extensions: tuple[str, ...] = ()) -> Behave:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith("POST /v2/models/there/infer "):
            await (closing(infer) if isinstance(infer, bytes) else infer)(request, writer)
        elif request.line.startswith("GET /v2/models/there/ready "):
            writer.write(reply(b""))
        elif request.line.startswith("GET /v2/models/there "):
            writer.write(reply(json.dumps(meta).encode()))
        else:
            writer.write(reply(json.dumps({"name": "s", "extensions": extensions}).encode()))

    return behave


def in_json(**changes: Any) -> bytes:
    return reply(json.dumps({"outputs": [{**Y, "shape": [1, 2], "data": [2, 4], **changes}]}).encode())


@pytest.mark.parametrize("has_bytes", [True, False])
def test_tensors_go_as_bytes_where_the_server_takes_them_so(has_bytes: bool) -> None:
    values = np.array([[1, 2]], "<f4")
    seen: list[Request] = []

    async def infer(request: Request, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        if not has_bytes:
            writer.write(in_json())
            return
        head = json.dumps({"outputs": [{**Y, "shape": [1, 2], "parameters": {"binary_data_size": 8}}]}).encode()
        writer.write(reply(head + (2 * values).tobytes(), "200 OK", f"Inference-Header-Content-Length: {len(head)}"))

    behave = tensors(infer, extensions=("binary_tensor_data",) if has_bytes else ())
    ((head, data),) = outcome(behave, {"inputs": [X]}, "v2", values.tobytes())
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), [2, 4])
    assert head == {"outputs": [{"name": "y", "shape": [1, 2], "dtype": "<f4"}]}
    assert (b'"data"' in seen[0].body) is not has_bytes


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"no"), "no JSON"),
        (reply(b"{}"), "that is wrong"),
        (reply(b'{"outputs": [1]}'), "that is wrong"),
        (reply(b'{"outputs": []}'), "other outputs"),
        (in_json(name="z"), "no input 'z'|that is wrong"),
        (in_json(shape=[1, 3]), "that is wrong"),
        (in_json(shape=[1 << 60, 2]), "that is wrong"),
        (in_json(data=[1]), "that is wrong"),
        (in_json(parameters={"binary_data_size": 8}), "that is wrong"),
        (reply(b"{}", "200 OK", "Inference-Header-Content-Length: 77"), "is no part of it"),
        (reply(b"{}", "200 OK", "Inference-Header-Content-Length: -1"), "is no part of it"),
        (reply(b'{"error": "gone"}', "404 Not Found"), "status 404: gone"),
    ],
)
def test_tensors_that_are_wrong_are_an_engine_error(answer: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=rf"^far: .*({words})"):
        raise outcome(tensors(answer), {"inputs": [X]}, "v2", bytes(8))


@pytest.mark.parametrize(
    "meta",
    [
        [],
        {},
        {**META, "inputs": [{**Y, "datatype": "BYTES"}]},
        {**META, "inputs": [{**Y, "shape": [1e400]}]},
        {**META, "outputs": [{**Y, "shape": 3}]},
    ],
    ids=["no object", "empty", "texts", "infinite", "no shape"],
)
def test_a_model_that_cannot_be_asked_is_told_at_the_start(meta: Any) -> None:
    with serve(tensors(b"", meta)) as server, pytest.raises(EngineError, match=r"^far: its model cannot be asked"):
        played(remote(server.url, "v2").start)


def test_numbers_that_json_cannot_say_are_refused_and_outputs_that_are_not_there() -> None:
    nan = np.array([[np.nan, 1]], "<f4").tobytes()
    assert "neither NaN nor infinity" in str(outcome(tensors(in_json()), {"inputs": [X]}, "v2", nan))
    found = outcome(tensors(in_json()), {"inputs": [X], "outputs": ["z"]}, "v2", bytes(8))
    assert isinstance(found, RequestError)
    assert str(found) == "no output z; there are y"

"""Tensors in requests: what is written is read, and sizes that lie are refused before anything is made of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tersor.core.errors import EngineError
from tersor.deploy.gateway.tensors import Infer, parsed, written
from tersor.deploy.running.datatypes import KINDS
from tersor.deploy.running.supervised import RequestError

X = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}


def request(array: np.ndarray[Any, Any], kind: str, *, binary: bool) -> tuple[bytes, str | None]:
    entry: dict[str, Any] = {"name": "x", "datatype": kind, "shape": list(array.shape)}
    if not binary:
        return json.dumps({"inputs": [{**entry, "data": array.tolist()}]}).encode(), None
    entry["parameters"] = {"binary_data_size": array.nbytes}
    text = json.dumps({"inputs": [entry]}).encode()
    return text + array.tobytes(), str(len(text))


@given(st.data(), st.sampled_from(sorted(KINDS)), st.booleans())
def test_what_is_sent_is_what_the_engine_gets(data: st.DataObject, kind: str, binary: bool) -> None:
    elements = {"allow_nan": False, "allow_infinity": False} if kind.startswith("FP") else {}
    array = data.draw(
        arrays.arrays(KINDS[kind], arrays.array_shapes(min_side=0, max_dims=3), elements=elements or None)
    )
    declared = [{"name": "x", "datatype": kind, "shape": [-1] * array.ndim}]
    found = parsed(*request(array, kind, binary=binary), declared)
    assert found.inputs == ({"name": "x", "dtype": np.dtype(KINDS[kind]).str, "shape": list(array.shape)},)
    np.testing.assert_array_equal(np.frombuffer(found.payload, KINDS[kind]).reshape(array.shape), array)


@given(
    st.booleans(), arrays.arrays("<f4", arrays.array_shapes(), elements={"allow_nan": False, "allow_infinity": False})
)
def test_what_the_engine_makes_is_what_is_sent(binary: bool, array: np.ndarray[Any, Any]) -> None:
    infer = Infer((), b"", {"y": binary}, False, "7")
    body, size = written("m", "1", infer, [{"name": "y", "dtype": "<f4", "shape": array.shape}], array.tobytes())
    told = json.loads(body[:size])
    assert (told["model_name"], told["id"], told["outputs"][0]["datatype"]) == ("m", "7", "FP32")
    values = np.frombuffer(body[size:], "<f4") if binary else np.asarray(told["outputs"][0]["data"], "<f4")
    np.testing.assert_array_equal(values, array.reshape(-1))


def test_what_json_cannot_say_is_told() -> None:
    infer, outputs = Infer((), b"", None, False, ""), [{"name": "y", "dtype": "<f4", "shape": [1]}]
    with pytest.raises(EngineError, match="y has NaN or infinity, which JSON cannot say"):
        written("m", "1", infer, outputs, np.array([np.nan], np.float32).tobytes())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"shape": [1, 3]}, "3 numbers of type float32 are wanted"),
        ({"shape": [1, 3], "data": [1, 2]}, "3 numbers of type float32 are wanted"),
        ({"shape": [1, 3], "data": [1, 2, "3"]}, "3 numbers of type float32 are wanted"),
        ({"shape": [1, 3], "data": [[1], [2, 3]]}, "3 numbers of type float32 are wanted"),
        ({"shape": [1 << 40, 3], "data": [1]}, "numbers of type float32 are wanted"),
        ({"shape": [1, -3], "data": []}, "a shape is a list of sizes"),
        ({"shape": [1, 3.0], "data": []}, "a shape is a list of sizes"),
        ({"shape": [1] * 40, "data": [1]}, "a shape is a list of sizes"),
        ({"shape": [1, 4], "data": [1, 2, 3, 4]}, r"shape \[-1, 3\] is wanted, not \[1, 4\]"),
        ({"shape": [3], "data": [1, 2, 3]}, r"shape \[-1, 3\] is wanted, not \[3\]"),
        ({"shape": [1, 3], "parameters": {"binary_data_size": 12}}, "12 bytes are wanted, 12 given"),
        ({"shape": [1, 3], "parameters": {"binary_data_size": -12}}, "12 bytes are wanted, -12 given"),
        ({"shape": [1, 3], "datatype": "FP64", "data": [1, 2, 3]}, "FP32 is wanted, not 'FP64'"),
        ({"name": "z", "shape": [1, 3], "data": [1, 2, 3]}, "no input 'z'; there are x"),
    ],
)
def test_sizes_and_types_that_lie_are_refused(entry: dict[str, Any], words: str) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", **entry}]}).encode()
    with pytest.raises(RequestError, match=words):
        parsed(body, None, [X])


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=6)))
def test_bytes_that_are_no_request_are_refused(body: bytes, header: str | None) -> None:
    with pytest.raises(RequestError):
        parsed(body, header, [X])


@pytest.mark.parametrize("header", ["9" * 5000, "-1", "1e1", "\u0661"])
def test_a_size_that_is_none_is_refused(header: str) -> None:
    with pytest.raises(RequestError, match=r"Inference-Header-Content-Length '.{1,22}' is no part of 2 bytes"):
        parsed(b"{}", header, [X])


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    body, header = request(np.zeros((1, 3), np.float32), "FP32", binary=True)
    with pytest.raises(RequestError, match="2 bytes belong to no input"):
        parsed(body + b"xx", header, [X])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("binary", [True, False])
def test_numbers_that_are_none_are_refused(value: float, binary: bool) -> None:
    body, header = request(np.array([[0, value, 0]], np.float32), "FP32", binary=binary)
    with pytest.raises(RequestError, match="x: NaN, infinity or a number that FP32 has no room for"):
        parsed(body, header, [X])


@pytest.mark.parametrize("number", ["1e39", "-1e400"])
def test_numbers_that_become_infinite_are_refused(number: str) -> None:
    body = f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, {number}, 0]}}]}}'
    with pytest.raises(RequestError, match="x: NaN, infinity or a number that FP32 has no room for"):
        parsed(body.encode(), None, [X])


def test_integers_out_of_range_are_refused() -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [300]}]}).encode()
    with pytest.raises(RequestError, match="1 numbers of type uint8 are wanted"):
        parsed(body, None, [{"name": "x", "datatype": "UINT8", "shape": [1]}])


@pytest.mark.parametrize(("name", "bits"), [("FP16", np.uint16), ("FP32", np.uint32)])
def test_floats_in_json_are_told_apart_by_their_digits(name: str, bits: type[np.unsignedinteger[Any]]) -> None:
    kind = np.dtype(KINDS[name])
    some = np.random.default_rng(0).integers(0, np.iinfo(bits).max, 20_000, bits, endpoint=True).view(kind)
    values = np.concatenate([some[np.isfinite(some)], np.array([0.0, -0.0, 1 / 3], kind)])
    output = {"name": "y", "dtype": kind.str, "shape": [values.size]}
    body, _ = written("m", "1", Infer((), b"", None, False, "seven"), [output], values.tobytes())
    made = json.loads(body)
    assert (made["model_name"], made["model_version"], made["id"]) == ("m", "1", "seven")
    assert np.array(made["outputs"][0]["data"], np.float64).astype(kind).tobytes() == values.tobytes()

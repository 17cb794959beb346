from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError, ShapeError
from tersor.files.safetensors import MAX_HEADER_BYTES, SafetensorsFile

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    return path


FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "bool"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_type_decodes_to_what_torch_says(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    if kind.itemsize == 1:
        values = torch.arange(256, dtype=torch.uint8).view(kind).reshape(16, 16)
    else:
        values = (torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 100).to(kind)
    save_file({"x": values}, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        read = file.read("x")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values.float().numpy())
        np.testing.assert_array_equal(file.read("x", 3, 7), values.float().numpy()[3:7])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_come_as_they_are(tmp_path: Path, dtype: str) -> None:
    values = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    save_file({"x": values}, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        read = file.read("x")
        assert read.dtype == values.numpy().dtype
        np.testing.assert_array_equal(read, values.numpy())


def test_scalars_and_empty_tensors_and_metadata_are_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    with SafetensorsFile(written(tmp_path, raw(header, struct.pack("<f", 2.5)))) as file:
        assert file.read("scalar") == 2.5
        assert file.read("empty").shape == (0, 4)
        assert file.metadata == {"format": "pt"}


def test_rows_outside_the_tensor_are_refused(tmp_path: Path) -> None:
    with (
        SafetensorsFile(written(tmp_path, raw(one(), bytes(8)))) as file,
        pytest.raises(ShapeError, match=r"x \(2,\): rows 1 to 3 asked for, it has 2"),
    ):
        file.read("x", 1, 3)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "truncated"),
    "only half a length": (b"\1\0\0", "truncated"),
    "huge header": (struct.pack("<Q", 2**63) + b"{}", f"at most {MAX_HEADER_BYTES}"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "not JSON": (raw(b"{,}"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff":1}'), "not JSON"),
    "a list": (raw(b"[]"), "an object is needed"),
    "deep nesting": (raw(b"[" * 100_000), "not JSON|JSON"),
    "crowded": (raw(b"[" * 200_000), "at most 131072"),
    "huge number": (raw(b'{"x":' + b"9" * 5000 + b"}"), "not JSON"),
    "NaN": (raw(b'{"x":NaN}'), "NaN, which is not JSON"),
    "name twice": (
        raw(b'{"x":' + json.dumps(one()["x"]).encode() + b',"x":' + json.dumps(one()["x"]).encode() + b"}"),
        "twice",
    ),
    "key twice": (raw(b'{"x":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}', bytes(4)), "twice"),
    "metadata with numbers": (raw({"__metadata__": {"a": 1}}), "text to text"),
    "extra key": (raw({"x": {**one()["x"], "more": 1}}, bytes(8)), "exactly the keys"),
    "missing key": (raw({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "exactly the keys"),
    "unknown dtype": (raw(one(dtype="Q4"), bytes(8)), "dtype 'Q4' is not one of"),
    "dtype a list": (raw(one(dtype=["F32"]), bytes(8)), "is not one of"),
    "negative size": (raw(one(shape=[-2]), bytes(8)), "whole numbers"),
    "size as float": (raw(one(shape=[2.0]), bytes(8)), "whole numbers"),
    "size as bool": (raw(one(shape=[True]), bytes(8)), "whole numbers"),
    "sizes whose product overflows": (raw(one(shape=[2**62, 2**62]), bytes(8)), "takes"),
    "too many axes": (raw(one(shape=[1] * 33, offsets=[0, 4]), bytes(4)), "at most 32"),
    "falling offsets": (raw(one(offsets=[8, 0]), bytes(8)), "two rising"),
    "three offsets": (raw(one(offsets=[0, 4, 8]), bytes(8)), "two rising"),
    "offsets of another size": (raw(one(offsets=[0, 4]), bytes(8)), "takes 8 bytes"),
    "offsets beyond the file": (raw(one(shape=[2**40], offsets=[0, 2**42]), bytes(8)), "truncated"),
    "bytes left over": (raw(one(), bytes(9)), "belong to no tensor"),
    "a gap": (raw(one(offsets=[4, 12]), bytes(12)), "leaves a gap"),
    "an overlap": (raw({**one(), "y": one(offsets=[4, 12])["x"]}, bytes(12)), "overlaps"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_a_format_error(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(FormatError, match=message):
        SafetensorsFile(written(tmp_path, content))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nothing\.safetensors"):
        SafetensorsFile(tmp_path / "nothing.safetensors")
    with pytest.raises(FormatError, match="not a regular file"):
        SafetensorsFile(tmp_path)


def test_a_file_that_shrinks_under_us_is_a_format_error(tmp_path: Path) -> None:
    path = written(tmp_path, raw(one(), bytes(8)))
    with SafetensorsFile(path) as file:
        with path.open("r+b") as handle:
            handle.truncate(path.stat().st_size - 4)
        with pytest.raises(FormatError, match="shrank while being read"):
            file.read("x")

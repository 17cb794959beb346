from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import FormatError, ShapeError, UnsupportedError
from tersor.files.dtypes import decode
from tersor.files.safetensors import SafetensorsFile
from tersor.files.safetensors_writer import SafetensorsWriter, StoredTensor, encode

safetensors = pytest.importorskip("safetensors.numpy", reason="the format's own reader judges: pip install safetensors")

TENSORS = [
    StoredTensor("odd", "U8", (3,)),
    StoredTensor("wide", "I64", (2,)),
    StoredTensor("a", "F32", (2, 3)),
    StoredTensor("none", "F16", (0, 4)),
    StoredTensor("one", "F16", ()),
]


def test_the_formats_own_reader_reads_what_came_in_any_order_and_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    with path.open("wb") as file:
        writer = SafetensorsWriter(file, TENSORS, {"format": "pt"})
        writer.write("a", values[:1])
        writer.write("odd", np.array([1, 2, 3], np.uint8))
        writer.write("one", np.array(0.5, "<f2"))
        writer.write("a", values[1:])
        writer.write("none", np.zeros((0, 4), "<f2"))
        writer.write("wide", np.array([-1, 2**40], "<i8"))
        writer.finish()
    found = safetensors.load_file(path)
    np.testing.assert_array_equal(found["a"], values)
    assert found["odd"].tolist() == [1, 2, 3]
    assert found["wide"].tolist() == [-1, 2**40]
    assert found["one"] == 0.5
    assert found["none"].shape == (0, 4)
    with SafetensorsFile(path) as ours:
        assert ours.metadata == {"format": "pt"}
        for tensor in TENSORS:
            assert ours.tensors[tensor.name].shape == tensor.shape
            assert ours.tensors[tensor.name].offset % {"U8": 1, "I64": 8, "F32": 4, "F16": 2}[tensor.dtype] == 0


def test_the_bytes_of_a_small_file_are_those_of_the_description(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        writer = SafetensorsWriter(file, [StoredTensor("x", "U8", (2,))], {})
        writer.write("x", np.array([7, 9], np.uint8))
        writer.finish()
    header = b'{"__metadata__":{},"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    header += b" " * (-len(header) % 8)
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + bytes([7, 9])


def test_too_many_bytes_missing_bytes_and_equal_names_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "m").open("wb") as file:
        writer = SafetensorsWriter(file, TENSORS, {})
        with pytest.raises(ShapeError, match="odd: 4 bytes arrived, 3 were to come"):
            writer.write("odd", np.zeros(4, np.uint8))
        with pytest.raises(ShapeError, match="wide: 16 bytes of 16 never arrived"):
            writer.finish()
        with pytest.raises(FormatError, match="two tensors are called 'odd'"):
            SafetensorsWriter(file, [TENSORS[0], TENSORS[0]], {})


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "I8", "I64", "BOOL"])
def test_encoding_inverts_decoding(dtype: str) -> None:
    width = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8, "BOOL": 1}[dtype]
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "BOOL" else 120, 64 * width, dtype=np.uint8)
    assert encode(decode(raw.tobytes(), dtype), dtype).tobytes() == raw.tobytes()


def test_types_that_cannot_be_copied_are_named() -> None:
    with pytest.raises(UnsupportedError, match="F8_E4M3 cannot be copied"):
        encode(np.zeros(2, np.float32), "F8_E4M3")

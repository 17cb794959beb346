from __future__ import annotations

import os
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError
from tersor.files.torch_zip import MAX_PICKLE_BYTES, TorchZipFile

torch = pytest.importorskip("torch")


class Bomb:
    """Runs code when it is unpickled freely."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def saved(tmp_path: Path, value: object, **options: Any) -> Path:
    path = tmp_path / "x.bin"
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int32"]
)
def test_rows_come_as_torch_has_them(tmp_path: Path, dtype: str) -> None:
    values = torch.arange(24).reshape(6, 4).to(getattr(torch, dtype))
    file = TorchZipFile(saved(tmp_path, {"x": values, "t": values.T, "s": values[1, 1]}))
    expected = values.float().numpy() if values.is_floating_point() else values.numpy()
    np.testing.assert_array_equal(file.read("x"), expected)
    np.testing.assert_array_equal(file.read("x", 2, 5), expected[2:5])
    np.testing.assert_array_equal(file.read("t", 1, 3), expected.T[1:3])
    assert file.read("s") == expected[1, 1]
    assert file.tensors["x"].shape == (6, 4)


def test_tensors_of_every_make_are_what_torch_reads(tmp_path: Path) -> None:
    base = torch.arange(120.0).reshape(2, 3, 4, 5)
    named = torch.ones(3)
    named.note = "an attribute"
    parameter = torch.nn.Parameter(base[0, 0])
    parameter.note = 1
    value = {
        "parameter": torch.nn.Parameter(base[0]), "parameter with a state": parameter, "named": named,
        "cut": base[1, 1:, ::2], "turned": base.permute(3, 1, 0, 2), "one column": base[..., 0, :1],
        "repeated": torch.arange(3.0).expand(4, 3), "empty": base[:, :0], "scalar": base[1, 2, 3, 4],
        "wide": torch.arange(4096.0).reshape(64, 64).T, "far apart": torch.arange(5000)[::1000],
        **torch.nn.Linear(3, 2).state_dict(),
    }  # fmt: skip
    path = saved(tmp_path, value)
    with TorchZipFile(path) as file:
        for name, tensor in torch.load(path, weights_only=True).items():
            expected = tensor.detach().numpy()
            found = file.read(name)
            assert (found.shape, found.flags.c_contiguous) == (expected.shape, True), name
            np.testing.assert_array_equal(found, expected)
            for start in range(len(expected) if expected.shape else 0):
                np.testing.assert_array_equal(file.read(name, start, start + 1), expected[start : start + 1])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_protocol_of_the_pickle_changes_nothing(protocol: int, tmp_path: Path) -> None:
    values = OrderedDict((f"x{index}", torch.full((2, 3), index)) for index in range(300))
    file = TorchZipFile(saved(tmp_path, values, pickle_protocol=protocol))
    for name, tensor in values.items():
        np.testing.assert_array_equal(file.read(name), tensor.numpy())


def test_tensors_that_share_a_storage_are_read_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    file = TorchZipFile(saved(tmp_path, {"whole": whole, "tail": whole[8:], "tied": whole}))
    np.testing.assert_array_equal(file.read("tail"), [8, 9, 10, 11])
    np.testing.assert_array_equal(file.read("tied"), file.read("whole"))


def test_a_file_that_shrinks_is_an_error_not_a_signal(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": torch.randn(512, 512)})
    file = TorchZipFile(path)
    os.truncate(path, 100_000)
    with pytest.raises(FormatError, match=r"x\.bin: shrank while being read"):
        file.read("x", 400, 500)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), "'x' is ComplexFloatStorage: that is not read"),
        (torch.ones(2, dtype=torch.uint16), "'x' is uint16: that is not read"),
        (torch.ones(2, dtype=torch.complex64).conj().imag, "not plain values in a storage"),
        (torch.eye(2).to_sparse(), r"not executed \('x' by torch\._utils\._rebuild_sparse_tensor\)"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        TorchZipFile(saved(tmp_path, {"x": value}))


def rewritten(path: Path, name: str, old: bytes, new: bytes) -> Path:
    """Change a member of a zip that torch wrote."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert members[name].count(old) == 1
    members[name] = members[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("x/data.pkl", b"K\x07K\x05", b"K\x09K\x05", "'x' reaches beyond its storage, data/0 of 160 bytes"),
        ("x/data.pkl", b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001", "reaches beyond its storage, data/1 of 0 bytes"),
        ("x/data.pkl", b"K\x07K\x05", b"J\xff\xff\xff\xffK\x05", "whole numbers"),
        ("x/data.pkl", b"K\x05K\x01", b"K\x05N", "whole numbers"),
        ("x/data.pkl", b"K\x07K\x05\x86", b"K\x07\x85", "1 axes and 2 steps"),
        ("x/data.pkl", b"storage", b"another", "not plain values in a storage"),
        ("x/byteorder", b"little", b"big", "not little-endian"),
    ],
)
def test_what_does_not_lie_in_the_file_is_refused(
    name: str, old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, {"x": torch.ones(8, 5)[:7]})
    TorchZipFile(path).close()
    with pytest.raises(FormatError, match=message):
        TorchZipFile(rewritten(path, name, old, new))


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": torch.ones(2)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x/data/0", bytes(8))
    with pytest.raises(FormatError, match="two zip members have the same name"):
        TorchZipFile(path)


def test_a_read_array_is_ours_to_change(tmp_path: Path) -> None:
    file = TorchZipFile(saved(tmp_path, {"x": torch.ones(4)}))
    file.read("x")[:] = 7
    np.testing.assert_array_equal(file.read("x"), np.ones(4))


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    assert list(TorchZipFile(saved(tmp_path, {"state_dict": {"x": torch.ones(2)}, "epoch": 3})).tensors) == ["x"]


def test_no_code_of_a_pickle_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    with pytest.raises(FormatError, match="builds more than tensors, or is broken, and is not executed"):
        TorchZipFile(saved(tmp_path, {"x": Bomb(target)}))
    assert not target.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list"),
        ({"x": 3}, "entry 'x' is not a tensor"),
        ({3: torch.ones(1)}, "entry 3 is not a tensor"),
    ],
)
def test_anything_but_a_dictionary_of_tensors_is_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        TorchZipFile(saved(tmp_path, value))


def test_a_tensor_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"claims 4398046511104 bytes, the file has"):
        TorchZipFile(saved(tmp_path, {"x": torch.ones(1).expand(2**20, 2**20)}))


def test_the_old_format_before_zips_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": torch.ones(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"since torch 1\.6; load and save it again"):
        TorchZipFile(path)


@pytest.mark.parametrize("keep", [0, 3, 50, 300, -1, -22])
def test_a_truncated_file_is_a_format_error(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path, {"x": torch.ones(64)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError):
        TorchZipFile(path)


def test_packed_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**20))
    with pytest.raises(FormatError, match="packed zip members"):
        TorchZipFile(path)


def test_a_huge_pickle_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", bytes(MAX_PICKLE_BYTES + 1))
    with pytest.raises(FormatError, match=r"exactly one data\.pkl of at most"):
        TorchZipFile(path)


def test_reading_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, {"x": torch.ones(3)})
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(TorchZipFile(path).read("x"), np.ones(3))

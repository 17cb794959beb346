from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError
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


def test_without_torch_the_install_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, {"x": torch.ones(1)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingError, match=r"pip install 'tersor\[torch\]'"):
        TorchZipFile(path)

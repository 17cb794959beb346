from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tersor.containers.imatrix import Importances, read_imatrix, write_imatrix
from tersor.core.errors import FormatError, MissingError

NAME, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_gate_exps.weight"


@pytest.fixture
def content() -> Importances:
    rng = np.random.default_rng(0)
    sums = {NAME: rng.random((1, 64), np.float32) * 100, EXPERTS: rng.random((3, 32), np.float32)}
    counts = {NAME: np.array([512], np.float32), EXPERTS: np.array([7, 0, 9], np.float32)}
    return Importances(sums, counts, ("wiki.txt",), 4, 128)


def test_what_is_written_is_read_again(content: Importances, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", content)
    found = read_imatrix(tmp_path / "i.gguf")
    assert (found.datasets, found.chunks, found.chunk_size) == (("wiki.txt",), 4, 128)
    for name in (NAME, EXPERTS):
        np.testing.assert_array_equal(found.sums[name], content.sums[name])
        np.testing.assert_array_equal(found.counts[name], content.counts[name])


def test_importance_is_the_mean_and_one_where_an_expert_saw_nothing(content: Importances) -> None:
    values = content.values()
    np.testing.assert_allclose(values[NAME], content.sums[NAME][0] / 512)
    np.testing.assert_allclose(values[EXPERTS][0], content.sums[EXPERTS][0] / 7)
    np.testing.assert_array_equal(values[EXPERTS][1], np.ones(32, np.float32))


def test_gguf_py_reads_the_file_as_llama_cpp_lays_it_out(content: Importances, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", content)
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert "general.architecture" not in reader.fields
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors[f"{EXPERTS}.in_sum2"].shape) == [32, 3]  # ggml order
    assert list(tensors[f"{EXPERTS}.counts"].shape) == [1, 3]


def test_the_older_stream_is_read(tmp_path: Path) -> None:
    sums = np.arange(8, dtype=np.float32)
    entry = struct.pack("<i", len(NAME)) + NAME.encode() + struct.pack("<ii", 4, 8) + sums.tobytes()
    (tmp_path / "i.dat").write_bytes(struct.pack("<i", 1) + entry + struct.pack("<ii", 4, 3) + b"abc")
    found = read_imatrix(tmp_path / "i.dat")
    np.testing.assert_allclose(found.values()[NAME], sums / 4)
    assert (found.datasets, found.chunks) == (("abc",), 4)


@pytest.mark.parametrize("cut", [0, 3, 5, 20, 60])
def test_a_broken_stream_is_refused(tmp_path: Path, cut: int) -> None:
    entry = struct.pack("<i", len(NAME)) + NAME.encode() + struct.pack("<ii", 4, 8) + bytes(32)
    (tmp_path / "i.dat").write_bytes((struct.pack("<i", 2) + entry)[:cut])
    with pytest.raises(FormatError, match="importance matrix"):
        read_imatrix(tmp_path / "i.dat")


def test_nan_and_other_files_are_refused(content: Importances, tmp_path: Path) -> None:
    content.sums[NAME][0, 3] = np.nan
    write_imatrix(tmp_path / "i.gguf", content)
    with pytest.raises(FormatError, match=r"attn_q\.weight holds NaN"):
        read_imatrix(tmp_path / "i.gguf")
    with pytest.raises(MissingError, match="no such importance file"):
        read_imatrix(tmp_path / "none")

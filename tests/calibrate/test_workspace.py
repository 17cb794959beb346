from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.calibrate.workspace import Finished, Workspace, workspace_path
from tersor.core.errors import FormatError, SchemeError
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get

RUN = {"model": "abc", "recipe": {"format": "q4_k_m"}}


def finished() -> Finished:
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    q4, q8 = get("q4_0"), get("q8_0")
    tensors = {
        "blk.0.attn_q.weight": QuantizedTensor(q4, (6, 64), q4.encode(weight)),
        "blk.0.ffn_gate_exps.weight": QuantizedTensor(q8, (3, 2, 64), q8.encode(weight), "expert 1 saw no token"),
    }
    return Finished(tensors, {"blk.0.attn_q.weight": {"error": 0.25}, "blk.0.ffn_gate_exps.weight": {}})


def test_a_block_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = finished()
    Workspace(tmp_path / "w", RUN, resume=False).save(3, saved)
    found = Workspace(tmp_path / "w", RUN, resume=True)
    assert found.load(2) is None
    loaded = found.load(3)
    assert loaded is not None
    assert {k: dict(v) for k, v in loaded.notes.items()} == {k: dict(v) for k, v in saved.notes.items()}
    for name, tensor in saved.tensors.items():
        other = loaded.tensors[name]
        assert (other.format.name, other.shape, other.fallback) == (tensor.format.name, tensor.shape, tensor.fallback)
        np.testing.assert_array_equal(other.data, tensor.data)


def test_without_resume_older_work_is_removed(tmp_path: Path) -> None:
    Workspace(tmp_path / "w", RUN, resume=False).save(0, finished())
    assert Workspace(tmp_path / "w", RUN, resume=False).load(0) is None


def test_work_of_another_run_is_never_mixed_in(tmp_path: Path) -> None:
    Workspace(tmp_path / "w", RUN, resume=False)
    with pytest.raises(SchemeError, match=r"made with another model: 'abc', now 'xyz'; repeat the command"):
        Workspace(tmp_path / "w", {**RUN, "model": "xyz"}, resume=True)


def test_resuming_where_nothing_lies_begins(tmp_path: Path) -> None:
    assert Workspace(tmp_path / "w", RUN, resume=True).load(0) is None


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_damaged_block_is_refused(tmp_path: Path, cut: int) -> None:
    work = Workspace(tmp_path / "w", RUN, resume=False)
    work.save(0, finished())
    path = tmp_path / "w" / "block-0000.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"block-0000\.bin: damaged"):
        work.load(0)


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "w", RUN, resume=False)
    work.save(0, finished())
    path = tmp_path / "w" / "block-0000.bin"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="its hash is another"):
        work.load(0)


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    work = Workspace(workspace_path(tmp_path / "m.gguf"), RUN, resume=False)
    work.save(0, finished())
    work.remove()
    assert list(tmp_path.iterdir()) == []

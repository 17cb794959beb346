from __future__ import annotations

import gc
import subprocess
import sys
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


def test_arrays_come_back_as_they_were_saved_and_take_four_bytes_a_number(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    squares = [chance.standard_normal(1000).astype(np.float32) for _ in range(50)]
    squares[0][:3] = [np.nan, np.inf, -0.0]
    turned, scalar = np.asfortranarray(chance.standard_normal((3, 5)).astype(np.float32)), np.array(2.5, np.float32)
    saved, work = finished(), Workspace(tmp_path / "w", RUN, resume=False)
    notes = {"squares": squares, "tokens": [7], "deep": {"turned": turned, "scalar": scalar, "none": None}}
    work.save(
        0, Finished(saved.tensors, {"blk.0.attn_q.weight": notes, "blk.0.ffn_gate_exps.weight": {"a": squares[1]}})
    )
    size, rows = (tmp_path / "w" / "block-0000.bin").stat().st_size, sum(t.data.nbytes for t in saved.tensors.values())
    assert size < rows + 4 * (51 * 1000 + 16) + 3000
    loaded = work.load(0)
    assert loaded is not None
    found, other = loaded.notes.values()
    assert (found["tokens"], found["deep"]["none"]) == ([7], None)
    for one, array in zip(
        [*found["squares"], found["deep"]["turned"], found["deep"]["scalar"], other["a"]],
        [*squares, turned, scalar, squares[1]],
        strict=True,
    ):
        assert (one.dtype, one.shape, one.tobytes()) == (np.float32, array.shape, array.tobytes())
    for name, tensor in saved.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name].data, tensor.data)


def test_a_head_may_be_long(tmp_path: Path) -> None:
    work, told = Workspace(tmp_path / "w", RUN, resume=False), "x" * (70 << 20)
    work.save(0, Finished(finished().tensors, {"blk.0.attn_q.weight": {"told": told}}))
    loaded = work.load(0)
    assert loaded is not None
    assert loaded.notes["blk.0.attn_q.weight"]["told"] == told


def test_what_is_neither_json_nor_an_array_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "w", RUN, resume=False)
    with pytest.raises(TypeError, match="Path is neither JSON nor an array of float32"):
        work.save(0, Finished(finished().tensors, {"blk.0.attn_q.weight": {"a": tmp_path}}))
    assert work.load(0) is None


@pytest.mark.parametrize("shape", ["[1, -1]", "[9000000000000000000]", "[1, 2]", '"x"', "{}"])
def test_a_damaged_array_is_refused(shape: str, tmp_path: Path) -> None:
    work = Workspace(tmp_path / "w", RUN, resume=False)
    work.save(0, Finished(finished().tensors, {"blk.0.attn_q.weight": {"a": np.ones(1, np.float32)}}))
    path = tmp_path / "w" / "block-0000.bin"
    path.write_bytes(path.read_bytes().replace(b'{"float32": [1]}', b'{"float32": %b}' % shape.encode()))
    with pytest.raises(FormatError, match=r"block-0000\.bin: damaged"):
        work.load(0)


def test_without_resume_older_work_is_removed(tmp_path: Path) -> None:
    Workspace(tmp_path / "w", RUN, resume=False).save(0, finished())
    assert Workspace(tmp_path / "w", RUN, resume=False).load(0) is None


def test_blocks_that_are_removed_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = Workspace(tmp_path / "w", RUN, resume=False)
    work.save(0, finished())
    work.save(1, finished())
    Workspace(tmp_path / "w", RUN, resume=True)
    assert not caplog.messages
    Workspace(tmp_path / "w", RUN, resume=False)
    assert caplog.messages == [f"{work.folder}: removes 2 finished blocks"]
    Workspace(tmp_path / "w", RUN, resume=False)
    assert len(caplog.messages) == 1


def test_the_same_command_goes_on_and_another_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = Workspace(tmp_path / "w", RUN, resume=None)
    assert Workspace(tmp_path / "w", RUN, resume=None).load(0) is None
    work.save(0, finished())
    assert not caplog.messages
    assert Workspace(tmp_path / "w", RUN, resume=None).load(0) is not None
    assert caplog.messages == [f"{work.folder}: goes on with 1 finished block of the same command"]
    assert Workspace(tmp_path / "w", {**RUN, "method": "another"}, resume=None).load(0) is None
    assert "removes 1 finished block, made with another method: " in caplog.messages[1]


@pytest.mark.parametrize("resume", [False, True])
def test_work_that_another_process_is_at_is_left_alone(tmp_path: Path, resume: bool) -> None:
    folder = tmp_path / "out" / "w"
    script = (
        "import sys, pathlib, time\n"
        "from tersor.calibrate.workspace import Workspace\n"
        "work = Workspace(pathlib.Path(sys.argv[1]), {}, resume=False)\n"
        "(work.folder / 'block-0000.bin').touch()\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(FormatError, match="w: another run is writing this folder; wait for it or end it"):
            Workspace(folder, {}, resume=resume)
        Workspace(folder, {}, resume=resume, is_owner=False)  # another rank of the same run
        assert (folder / "block-0000.bin").exists()
        child.kill()
    Workspace(folder, {}, resume=resume)
    assert (folder / "block-0000.bin").exists() == resume


def test_a_run_that_failed_keeps_nobody_off_in_its_own_process(tmp_path: Path) -> None:
    failed = Workspace(tmp_path / "w", RUN, resume=False)  # as a traceback would keep it
    failed.save(0, finished())
    again = Workspace(tmp_path / "w", RUN, resume=True)
    assert again.load(0) is not None
    del failed
    gc.collect()
    assert {path.name for path in tmp_path.iterdir()} == {"w", ".w.lock.tersor-partial"}, "the second still has it"
    again.remove()
    assert not [*tmp_path.iterdir()]


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

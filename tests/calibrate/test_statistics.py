"""What is damaged in saved sums is told with the remedy; that they are right is tested with the run that saves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.statistics import Statistics, block_file, save_sums
from tersor.calibrate.stream import Input
from tersor.core.errors import FormatError, MissingError
from tersor.files.hashing import sha256
from tersor.files.safetensors_writer import SafetensorsWriter

torch = pytest.importorskip("torch", reason="sums are torch tensors: pip install 'tersor[torch]'")


def saved(folder: Path) -> Path:
    sums = Sums.empty(4, hessian=True, cross=False)
    sums.add(torch.ones(3, 4))
    save_sums(block_file(folder, 0), [Input(("a",), None, sums), Input(("b", "c"), 1, sums)])
    return block_file(folder, 0)


def opened(folder: Path) -> Statistics:
    return Statistics(folder, {"files": {path.name: sha256(path) for path in folder.iterdir()}})


def test_inputs_are_counted_and_read(tmp_path: Path) -> None:
    saved(tmp_path)
    statistics = opened(tmp_path)
    found = statistics.load(0)
    assert statistics.inputs(0) == len(found) == 2
    assert [(one.names, one.expert, one.sums.tokens) for one in found] == [(("a",), None, 3), (("b", "c"), 1, 3)]
    hessian = found[0].sums.hessian()
    assert hessian is not None
    np.testing.assert_array_equal(hessian.numpy(), np.ones((4, 4)))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
@pytest.mark.parametrize("verb", ["inputs", "load"])
def test_a_block_without_sound_inputs_is_told_with_the_remedy(verb: str, content: bytes | None, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(FormatError, match=r"block-0000\.safetensors: damaged .*; gather the statistics again"):
        getattr(opened(tmp_path), verb)(0)


@pytest.mark.parametrize("told", [None, "{", "{}", "3"])
@pytest.mark.parametrize("verb", ["inputs", "load"])
def test_a_block_that_tells_nothing_of_its_inputs_is_damaged(verb: str, told: str | None, tmp_path: Path) -> None:
    with block_file(tmp_path, 0).open("wb+") as file:
        SafetensorsWriter(file, [], {} if told is None else {"inputs": told}).finish()
    with pytest.raises(FormatError, match=r"damaged .*; gather the statistics again"):
        getattr(opened(tmp_path), verb)(0)


@pytest.mark.parametrize("verb", ["inputs", "load"])
def test_a_missing_block_is_told_with_the_remedy(verb: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is missing; gather the statistics again"):
        getattr(opened(tmp_path), verb)(0)

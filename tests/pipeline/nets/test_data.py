from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.evaluation.nets.images import Preparation
from tersor.graph.net import Net
from tersor.pipeline.nets.data import calibration_batches

torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")


def test_images_of_an_npz_are_prepared_in_batches(folder: Path) -> None:
    batches = list(calibration_batches("calibration.npz", preparation=Preparation(mean=(0.5,) * 3, std=(0.25,) * 3)))
    assert [tuple(batch.shape) for batch in batches] == [(32, 3, 8, 8)] * 3
    with np.load("calibration.npz") as arrays:
        pixels = arrays["images"][33]
    wanted = (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    np.testing.assert_array_equal(batches[1][1].numpy(), wanted.transpose(2, 0, 1))


def test_arrays_named_as_the_inputs_are_fed_as_they_are(graph: Net, folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez("raw.npz", x=x, images=np.zeros(1))
    batches = list(calibration_batches(Path("raw.npz"), graph))
    assert [len(batch["x"]) for batch in batches] == [32, 8]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), x)


def test_a_function_by_name_gives_batches(folder: Path) -> None:
    name = f"batches_of_{folder.name}".replace("-", "_")
    (folder / f"{name}.py").write_text("def few():\n    return [1, 2]\nboth = [3]\nnumber = 4\n")
    assert list(calibration_batches(f"{name}:few")) == [1, 2]
    assert list(calibration_batches(f"{name}:both")) == [3]
    with pytest.raises(SchemeError, match="returned a int; batches are needed"):
        calibration_batches(f"{name}:number")


def test_what_yields_batches_is_passed_on(folder: Path) -> None:
    batches: list[Any] = [torch.zeros(1)]
    assert calibration_batches(batches) is batches


def test_broken_archives_are_named(graph: Net, folder: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.npz: no such file"):
        list(calibration_batches("none.npz"))
    Path("text.npz").write_text("not an archive")
    with pytest.raises(FormatError, match=r"text\.npz: not an \.npz of plain arrays"):
        list(calibration_batches("text.npz"))
    np.savez("other.npz", pictures=np.zeros((2, 8, 8, 3)))
    with pytest.raises(FormatError, match=r"no array called x \(as the net's inputs\) or images; there are pictures"):
        list(calibration_batches("other.npz", graph))
    np.savez("flat.npz", images=np.zeros((2, 8)))
    with pytest.raises(ShapeError, match=r"must be \[n, height, width, channels\], got \[2, 8\]"):
        list(calibration_batches("flat.npz"))
    np.savez("empty.npz", x=np.zeros((0, 3, 8, 8), np.float32))
    with pytest.raises(ShapeError, match="at least one"):
        list(calibration_batches("empty.npz", graph))
    objects = np.empty(2, object)
    objects[:] = [print, len]
    np.savez("pickle.npz", images=objects)
    with pytest.raises(FormatError, match=r"not an \.npz of plain arrays"):
        list(calibration_batches("pickle.npz"))
    with zipfile.ZipFile("bomb.npz", "w") as archive:
        archive.writestr(
            "images.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60,)}"
        )
    with pytest.raises(FormatError, match=r"not an \.npz of plain arrays"):
        list(calibration_batches("bomb.npz"))

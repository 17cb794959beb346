"""Where one file of several is named, it is that file which is quantized, kept, and compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tersor.core.errors import MissingError
from tersor.models import Model, load
from tersor.pipeline.calibrated.checkpoint import convert
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.conversion import quantize
from tersor.pipeline.language.references import open_reference

pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")

Make = Callable[..., Model]


def doubled(folder: Path, suffix: str) -> Path:
    """A second file in the folder, in which the numbers whose names end so are twice as large."""
    numbers = load_file(folder / "model.safetensors")
    changed = {name: (values * 2 if name.endswith(suffix) else values) for name, values in numbers.items()}
    save_file({name: np.ascontiguousarray(values) for name, values in changed.items()}, folder / "other.safetensors")
    return folder / "other.safetensors"


def read(source: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {one.name: one.read(0, one.rows) for one in load(source).tensors}


@pytest.fixture
def other(make: Make) -> Path:
    model = make(num_key_value_heads=4)
    assert model.folder is not None
    return doubled(model.folder, "weight")


def how(text: Path, container: str) -> How:
    calibration = Calibration(source=text, sequences=24, length=32, chunk=4)
    return How(method="rtn", calibration=calibration, threads=1, proof=False, container=container)


def test_a_model_knows_whether_its_folder_is_enough(other: Path) -> None:
    folder, named, chosen = load(other.parent), load(other), load(other.parent / "model.safetensors")
    assert [one.is_its_folder for one in (folder, named, chosen)] == [True, False, True]
    assert named.folder == other.parent
    assert named.weights == (other,)
    (other.parent / "model.safetensors").rename(other.parent / "third.safetensors")
    assert not load(other).is_its_folder


def test_the_checkpoint_is_made_of_the_file_that_was_named(other: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_calibrated(load(other), "int8-channel", out, how(text, "compressed-tensors"))
    found = read(out)
    for name, values in read(other).items():
        np.testing.assert_allclose(found[name], values, atol=abs(values).max() / 100, err_msg=name)


@pytest.mark.parametrize("container", ["gguf", "awq"])
def test_codes_are_kept_of_the_file_that_was_named(container: str, make: Make, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    quantize_calibrated(make(num_key_value_heads=4), "int4-g32", folder, how(text, "gptq"))
    named = doubled(folder, "scales")
    if container == "gguf":
        out = tmp_path / "m.gguf"
        quantize(load(named), "q4_0_pure", output=out)
    else:
        out = tmp_path / "out"
        convert(load(named), "int4-g32", out, container)
    found = read(out)
    for name, values in read(named).items():
        if ".attn_" in name and name.endswith("weight"):
            np.testing.assert_allclose(found[name], values, atol=abs(values).max() / 100, err_msg=name)


def test_transformers_is_not_given_the_folder_of_another_file(other: Path) -> None:
    with ExitStack() as stack:
        reference = open_reference(other, stack, context=32, threads=1)
        assert reference.engine.startswith("xllamacpp")
        assert "other.safetensors was named" in " ".join(reference.notes)
        with pytest.raises(MissingError, match=r"other\.safetensors was named"):
            open_reference(other, stack, context=32, threads=1, engine="transformers")

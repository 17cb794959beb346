"""What inspect says a quantized checkpoint weighs is what its files hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tersor import reference_model
from tersor.containers.hf.writer import write_checkpoint
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.files.safetensors import SafetensorsFile
from tersor.formats import get
from tersor.pipeline.inspect import inspect

SOURCE = Path(reference_model.PATH)
EXPECTED = {  # bits of a weight of [256, 256]: codes, scales, zero points; by what stands in the file
    ("gptq", "int4-g32-sym-f16"): 4 + (16 + 4) / 32 + 32 / 256,  # and the group of every column, in 32 bits
    ("gptq", "int8-channel-sym-f16"): 8 + (16 + 8) / 256 + 32 / 256,
    ("awq", "int4-g128-f16"): 4 + (16 + 4) / 128,
    ("compressed-tensors", "int4-g32-sym-bf16"): 4 + 16 / 32 + 2 * 64 / 256**2,  # and the shape, two of 64 bits
    ("compressed-tensors", "fp8_e4m3"): 8 + 32 / 256,
    ("compressed-tensors", "mxfp4"): 4 + 8 / 32,
    ("compressed-tensors", "nvfp4"): 4 + 8 / 16 + 32 / 256**2,
}


def written(container: str, spelled: str, output: Path) -> Path:
    """The embedded model with the matrices of its blocks in a container."""
    fmt = get(spelled)
    with contextlib.closing(Checkpoint(*weight_files(SOURCE)[:2])) as checkpoint:
        formats = {name: fmt for name in checkpoint.tensors if name.endswith("proj.weight")}
        weights = ((name, np.asarray(checkpoint.read(name), np.float32)) for name in formats)
        tensors = ((name, QuantizedTensor(fmt, w.shape, fmt.encode(w))) for name, w in weights)
        write_checkpoint(SOURCE, checkpoint, formats, tensors, output, name=container)
    return output


@pytest.mark.parametrize(("container", "spelled"), EXPECTED)
def test_a_quantized_checkpoint_weighs_what_its_files_hold(container: str, spelled: str, tmp_path: Path) -> None:
    folder = written(container, spelled, tmp_path / "m")
    found = inspect(folder)
    with SafetensorsFile(folder / "model.safetensors") as file:
        assert found.nbytes == sum(tensor.nbytes for tensor in file.tensors.values())
    rows = {tensor.name: tensor for tensor in found.tensors}
    assert rows["blk.0.attn_q.weight"].shape == (256, 256)
    assert rows["blk.0.attn_q.weight"].bits_per_weight == pytest.approx(EXPECTED[container, spelled], rel=1e-9)
    assert rows["token_embd.weight"].bits_per_weight == 16
    assert sum(total.nbytes for total in found.totals) == found.nbytes
    assert inspect(folder / "model.safetensors").nbytes == found.nbytes


def test_a_plain_checkpoint_weighs_its_types() -> None:
    found = inspect(SOURCE)
    with SafetensorsFile(SOURCE / "model.safetensors") as file:
        assert found.nbytes == sum(tensor.nbytes for tensor in file.tensors.values())

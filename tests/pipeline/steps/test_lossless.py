from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tersor.models import Model, load
from tersor.models.transforms import Affine
from tersor.pipeline.steps import lossless
from tersor.pipeline.steps.lossless import lossless_gguf

from ..conftest import MakeModel


def in_half(model: Model, kind: str) -> Model:
    """The same model, its matrices being values that 16 bits hold, one of them computed."""
    made = []
    for tensor in model.tensors:
        values = tensor.values
        exact = (values.read(0, tensor.rows).view(np.uint32) & 0xFFFF0000).view(np.float32) if kind == "BF16" else None
        values = dataclasses.replace(values, values=exact.reshape(tensor.shape)) if exact is not None else values  # type: ignore[type-var]  # Held
        if tensor.name == "blk.0.attn_q.weight":
            values = Affine(values, factor=1.0 / 3)
        made.append(dataclasses.replace(tensor, values=values, source_dtype=kind))
    return dataclasses.replace(model, tensors=tuple(made))


@pytest.mark.parametrize("room", [True, False])
def test_nothing_is_lost_whether_or_not_there_is_room(
    room: bool, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_half(make_model(), "BF16")
    monkeypatch.setattr(lossless, "machine_bytes", lambda: 1 << 40 if room else 1 << 10)
    made = {tensor.name: tensor for tensor in load(lossless_gguf(model, tmp_path)).tensors}
    for tensor in model.tensors:
        np.testing.assert_array_equal(made[tensor.name].read(0, tensor.rows), tensor.read(0, tensor.rows))
    assert made["blk.1.attn_q.weight"].source_dtype == ("F32" if room else "BF16")
    assert made["blk.0.attn_q.weight"].source_dtype == "F32"
    assert made["blk.0.attn_norm.weight"].source_dtype == "F32"


def test_a_gguf_is_its_own_reference(make_model: MakeModel, tmp_path: Path) -> None:
    path = lossless_gguf(make_model(), tmp_path)
    assert lossless_gguf(load(path), tmp_path) == path

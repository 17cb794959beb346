from __future__ import annotations

from pathlib import Path

import pytest

from tersor.core.errors import MissingError, SchemeError
from tersor.models import load
from tersor.pipeline.layers import compare_layers
from tersor.pipeline.quantize import quantize

from .conftest import MakeModel


def test_weights_alone_need_no_engine(make_model: MakeModel, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "made.gguf"
    quantize(model, "q4_k_m", path)
    rows = compare_layers(path, against=model, activations=False)
    assert [row.name for row in rows] == [tensor.name for tensor in model.tensors]
    assert all(row.arriving_db is None and not row.findings for row in rows)
    assert all(row.sqnr_db is None for row in compare_layers(path, against=load(path), activations=False))


def test_what_is_not_there_or_too_little_is_refused(tmp_path: Path, make_model: MakeModel) -> None:
    with pytest.raises(MissingError, match=r"absent\.gguf: no such file"):
        compare_layers(tmp_path / "absent.gguf", against=make_model())
    with pytest.raises(MissingError, match="not a file; a GGUF is needed"):
        compare_layers(tmp_path, against=make_model())
    path = tmp_path / "made.gguf"
    quantize(make_model(), "f32", path)
    with pytest.raises(SchemeError, match="tokens must be at least 2, got 1"):
        compare_layers(path, against=make_model(), tokens=1)
    with pytest.raises(MissingError, match=r"text: cannot be read \(No such file"):
        compare_layers(path, against=make_model(), data=tmp_path / "text")

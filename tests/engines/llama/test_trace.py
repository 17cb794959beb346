from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.engines import llama_cpp
from tersor.engines.llama import trace
from tersor.engines.llama.api import RefusalError, bound
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models import load

pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")
TOKENS = [7, 60, 61, 62, 90, 91, 7, 8, 9, 30]


def test_this_librarys_tensors_are_laid_out_as_declared() -> None:
    numbers = trace.bound_tensors(bound(str(llama_cpp._library())))
    assert set(numbers) == {"MUL_MAT", "MUL_MAT_ID", "GET_ROWS"}


def test_another_layout_of_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ctypes.Structure):
        _fields_ = (("more", ctypes.c_int64), *trace.Tensor._fields_)

    monkeypatch.setattr(trace, "Tensor", Other)
    with pytest.raises(RefusalError, match="layout: ggml_tensor holds"):
        trace.bound_tensors(bound(str(llama_cpp._library())))


def test_products_are_inputs_times_weights_and_the_last_one_is_the_logits(tiny_gguf: object, tmp_path: Path) -> None:
    path = tiny_gguf()  # type: ignore[operator]  # a factory
    rows = [1, 4, 9]
    with LlamaCpp(path, context=32) as engine:
        found = engine.trace(TOKENS, tmp_path / "spool", rows=rows, inputs=True)
        logits = engine.logits(TOKENS)
    np.testing.assert_array_equal(found.read("product output.weight"), logits[rows])
    for tensor in load(path).tensors:
        if len(tensor.shape) == 2 and tensor.name != "token_embd.weight":
            seen = found.input_of(tensor.name)
            assert seen is not None
            product = seen @ tensor.read(0, tensor.rows).T
            np.testing.assert_allclose(
                found.read(f"product {tensor.name}"), product, rtol=0, atol=2e-5 * np.abs(product).max()
            )
        elif tensor.name == "token_embd.weight":
            np.testing.assert_array_equal(
                found.read(f"lookup {tensor.name}"), tensor.read(0, tensor.rows)[np.take(TOKENS, rows)]
            )


def test_batches_are_joined_and_change_nothing(
    tiny_gguf: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf()  # type: ignore[operator]  # a factory
    ids = TOKENS * 4
    rows = list(range(3, 40, 4))
    with LlamaCpp(path, context=64) as engine:
        whole = engine.trace(ids, tmp_path / "whole", rows=rows, inputs=True)
    monkeypatch.setattr(llama_cpp, "_BATCH_BYTES", 1)  # the least: 16 tokens at once
    with LlamaCpp(path, context=64) as engine:
        parts = engine.trace(ids, tmp_path / "parts", rows=rows, inputs=True)
    assert set(whole.places) == set(parts.places)
    for name in whole.places:
        np.testing.assert_allclose(
            parts.read(name), whole.read(name), rtol=0, atol=1e-4 * np.abs(whole.read(name)).max()
        )
    assert dict(whole.inputs) == dict(parts.inputs)


def test_logits_are_the_same_after_a_trace(tiny_gguf: object, tmp_path: Path) -> None:
    with LlamaCpp(tiny_gguf(), context=32) as engine:  # type: ignore[operator]  # a factory
        before = engine.logits(TOKENS)
        engine.trace(TOKENS, tmp_path / "spool", rows=[1])
        np.testing.assert_array_equal(engine.logits(TOKENS), before)


def test_rows_that_are_not_there_and_places_that_cannot_be_written_are_refused(
    tiny_gguf: object, tmp_path: Path
) -> None:
    with LlamaCpp(tiny_gguf(), context=32) as engine:  # type: ignore[operator]  # a factory
        with pytest.raises(EngineError, match="rows must be positions of the 10 tokens"):
            engine.trace(TOKENS, tmp_path / "spool", rows=[10])
        with pytest.raises(EngineError, match="cannot be written"):
            engine.trace(TOKENS, tmp_path / "absent" / "spool", rows=[1])
        assert engine.logits(TOKENS).shape == (10, engine.vocabulary_size)

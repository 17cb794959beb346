"""On the real engine: the layer where an error enters is the one that is named, and later ones carry it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.evaluation import LayerError
from tersor.engines.activations import Activations
from tersor.evaluation.layers.arrivals import with_arrivals
from tersor.models import Model, ModelTensor
from tersor.pipeline.layers import compare_layers

from ..checks.conftest import Changed, MakeGguf


def noisy(name: str, share: float) -> object:
    def change(tensor: ModelTensor) -> ModelTensor:
        if tensor.name != name:
            return tensor

        def add(values: np.ndarray) -> np.ndarray:
            noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
            made: np.ndarray = values + np.float32(share * values.std()) * noise
            return made

        return dataclasses.replace(tensor, values=Changed(tensor.values, add))

    return change


def by_name(rows: tuple[LayerError, ...]) -> dict[str, LayerError]:
    return {row.name: row for row in rows}


@pytest.mark.parametrize("name", ["blk.1.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.ffn_up.weight"])
def test_error_enters_where_it_was_put_and_is_nowhere_before(name: str, make_gguf: MakeGguf, source: Model) -> None:
    rows = by_name(compare_layers(make_gguf("f32", noisy(name, 0.1)), against=source, tokens=48))
    entering = {row.name: row.entering_db for row in rows.values() if row.entering_db is not None}
    assert list(entering) == [name]
    assert entering[name] == pytest.approx(20, abs=2)
    assert rows[name].arriving_db == pytest.approx(entering[name], abs=0.1)
    layer = int(name.split(".")[1])
    for before in range(layer):
        assert rows[f"blk.{before}"].arriving_db is None
    assert all(rows[f"blk.{after}"].arriving_db is not None for after in range(layer, 2))
    arrived = rows["result_norm"].arriving_db
    assert arrived is not None
    assert 10 < arrived < 60


def test_quantizing_everything_makes_error_arrive_everywhere(make_gguf: MakeGguf, source: Model) -> None:
    rows = by_name(compare_layers(make_gguf("q4_0"), against=source, tokens=48))
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight"):
        entering, arriving = rows[name].entering_db, rows[name].arriving_db
        assert entering is not None
        assert arriving is not None
        assert arriving < entering + 1
    assert rows["blk.0"].layer == 0
    assert rows["blk.0"].kind == "block"
    first, last = rows["blk.0"].arriving_db, rows["blk.1"].arriving_db
    assert first is not None
    assert last is not None
    assert last < first
    assert not any(row.findings for row in rows.values())


def test_a_file_compared_with_itself_has_no_error_at_all(make_gguf: MakeGguf) -> None:
    path = make_gguf("q8_0")
    for row in compare_layers(path, against=path, tokens=32):
        assert (row.sqnr_db, row.entering_db, row.arriving_db, row.findings) == (None, None, None, ())


def test_text_of_ones_own_is_read(make_gguf: MakeGguf, source: Model, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on it " * 20)
    rows = by_name(compare_layers(make_gguf("q4_0"), against=source, data=text, tokens=32))
    assert rows["result_norm"].arriving_db is not None


def spooled(path: Path, **arrays: Float32) -> Activations:
    captures, parts, offset = {}, [], 0
    for name, values in arrays.items():
        rows, columns = values.shape
        captures[name.replace("__", " ")] = {"columns": columns, "groups": 1, "segments": [[offset, rows]]}
        parts.append(values.tobytes())
        offset += values.nbytes
    path.write_bytes(b"".join(parts))
    return Activations.from_answer(path, {"captures": captures, "input_of": {}, "choice_of": {}})


def test_a_weight_used_at_both_ends_has_a_row_for_each(tmp_path: Path) -> None:
    ones, some = np.ones((2, 4), np.float32), np.full((2, 4), 1.01, np.float32)
    most = np.full((2, 4), 1.1, np.float32)
    full = spooled(tmp_path / "full", lookup__embd=ones, product__embd=ones)
    subject = spooled(tmp_path / "subject", lookup__embd=some, product__embd=most)
    rows = with_arrivals([LayerError("embd", "token_embd", None, 30.0, 0.9, 0.1, entering_db=25.0)], full, subject)
    first, last = rows
    assert first.entering_db == first.arriving_db == pytest.approx(40, abs=0.01)
    assert (last.name, last.kind, last.entering_db) == ("embd as output", "output", 25.0)
    assert last.arriving_db == pytest.approx(20, abs=0.01)


def test_what_the_artefact_did_not_compute_has_no_arriving_error(tmp_path: Path) -> None:
    ones = np.ones((2, 4), np.float32)
    full, subject = spooled(tmp_path / "full", product__w=ones, result_norm=ones), spooled(tmp_path / "subject")
    (row,) = with_arrivals([LayerError("w", "w", None, 30.0, 0.9, 0.1, entering_db=25.0)], full, subject)
    assert (row.entering_db, row.arriving_db) == (25.0, None)

"""Candidates: what the method itself makes, kept and found again; and mixes put together from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tersor.analyse.stitched import measure_mixes
from tersor.analyse.survey import Surveyed
from tersor.calibrate.workspace import Workspace
from tersor.core.errors import ShapeError
from tersor.formats import get
from tersor.pipeline.quantize import quantize

if TYPE_CHECKING:
    import torch
    from tests.analyse.conftest import Case
else:
    torch = pytest.importorskip("torch")


def test_errors_are_those_of_the_kept_rows_and_fall_with_bits(case: Callable[..., Case]) -> None:
    made = case(method="gptq")
    for name in ("blk.1.ffn_down.weight", "output.weight", "token_embd.weight"):
        source = made.surveyed.sources[name]
        weight = torch.from_numpy(source.read(0, source.rows))
        errors = made.surveyed.errors(name)
        changes = made.surveyed.read(name, 0, source.rows)
        for kind, change in zip(made.surveyed.formats[name], changes, strict=True):
            assert errors[kind].weight == pytest.approx(float(change.norm() / weight.norm()), rel=1e-4)
        assert errors["q8_0"].weight < errors["q5_1"].weight < errors["q4_0"].weight
        if name == "token_embd.weight":
            assert errors["q4_0"].output is errors["q4_0"].importance is None
            assert errors["q4_0"].method == "rtn"
        else:
            outputs = [errors[kind].output or 0.0 for kind in ("q8_0", "q5_1", "q4_0")]
            assert 0 < outputs[0] < outputs[1] < outputs[2] < (errors["q4_0"].importance or 0.0)
            assert errors["q4_0"].method == "gptq"


def test_candidates_are_the_rows_of_the_encoder_where_nothing_is_known(case: Callable[..., Case]) -> None:
    made = case(method="rtn")
    plain = get("q4_0").encode(made.surveyed.sources["token_embd.weight"].read(0, 300))
    np.testing.assert_array_equal(
        made.surveyed.values("token_embd.weight", "q4_0").numpy(), get("q4_0").decode(plain, 64)
    )
    picked = made.surveyed.picked("token_embd.weight", "q4_0", np.array([7, 0, 7]))
    np.testing.assert_array_equal(picked.numpy(), get("q4_0").decode(plain, 64)[[7, 0, 7]])


def test_ranges_tell_outliers(case: Callable[..., Case]) -> None:
    made = case()
    ranges = made.surveyed.ranges("blk.0.attn_q.weight")
    assert ranges.rms == pytest.approx(0.25, rel=0.05)
    assert ranges.tail == pytest.approx(3, abs=0.3)
    assert ranges.outliers == 0
    assert ranges.input_peak is not None
    assert ranges.input_peak > 1
    assert made.surveyed.ranges("token_embd.weight").input_peak is None


def test_a_survey_goes_on_where_it_stopped_and_ends_with_the_same_candidates(case: Callable[..., Case]) -> None:
    first = case()
    files = sorted(first.folder.glob("block-*.bin"))
    before = [path.read_bytes() for path in files]
    files[1].unlink()
    files[2].unlink()
    kept = files[0].stat().st_mtime_ns
    case()
    assert [path.read_bytes() for path in files] == before
    assert files[0].stat().st_mtime_ns == kept


def test_candidates_that_were_never_made_are_missed_by_block(case: Callable[..., Case], tmp_path: Path) -> None:
    made = case()
    empty = replace(made.surveyed, workspace=Workspace(tmp_path / "empty", {}, resume=False))
    assert isinstance(empty, Surveyed)
    with pytest.raises(ShapeError, match="block 1 were never made"):
        empty.errors("blk.1.attn_q.weight")


@pytest.mark.parametrize("tied", [False, True])
def test_a_mix_put_together_diverges_as_much_as_the_file_of_the_same_candidates(
    case: Callable[..., Case], tmp_path: Path, tied: bool
) -> None:
    made = case(tied=tied, method="rtn", formats=("q4_0", "q8_0"))
    names = list(made.surveyed.formats)
    coarse = dict.fromkeys(names, "q4_0")
    ids = made.ids[:20]
    found = measure_mixes(
        made.decoder, made.surveyed, ids, {"none": {}, "coarse": coarse, "fine": dict.fromkeys(names, "q8_0")}
    )
    assert found["none"].kl.max() < 1e-9
    assert found["none"].same_top.min() == 1
    assert found["fine"].kl.mean() < found["coarse"].kl.mean() / 10
    if not tied:  # importance-weighted rounding of a file needs an importance matrix; without one the rows differ a bit
        quantize(made.model, "q4_0_pure", tmp_path / "m.gguf")
        alone = measure_mixes(made.decoder, made.surveyed, ids, {"embedding": {"token_embd.weight": "q4_0"}})
        assert 0 < alone["embedding"].kl.mean() < found["coarse"].kl.mean()

"""An analysis: saved, found again, refused for other models, and its estimates held against measurements."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tests.pipeline.planning.conftest import Case

from tersor.analyse.analysis import Analysis
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.models import Model
from tersor.pipeline.calibrated.statistics import calibrate
from tersor.pipeline.planning.analysing import Study, analyse, open_study


def test_every_tensor_has_what_its_rows_can_take_and_more_bits_cost_less(case: Case) -> None:
    analysis = case.studied.analysis
    assert {tensor.name for tensor in analysis.tensors} == {
        tensor.name for tensor in case.model.tensors if not tensor.must_be_f32
    }
    for tensor in analysis.tensors:
        assert [one.format for one in tensor.candidates] == ["q4_0", "q5_0", "q8_0"]
        losses = [one.kl for one in tensor.candidates]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > 50 * losses[2] > 0


def test_estimates_are_near_what_is_measured(case: Case) -> None:
    rows = case.studied.analysis.measured
    assert {one.what for one in rows} == {"single", "mix"}
    ratios = [one.measured / one.estimated for one in rows]
    # 40 draws of 32 tokens: a single estimate is good to a quarter, their mean to a tenth or so.
    assert 0.75 < np.exp(np.mean(np.log(ratios))) < 1.33


def test_a_finished_analysis_is_taken_as_it_is_and_of_others_refused(case: Case) -> None:
    files = sorted(path for path in case.folder.rglob("*") if path.is_file())
    before = {path: path.stat().st_mtime_ns for path in files}
    again = analyse(case.model, case.folder, case.study)
    assert again.analysis == case.studied.analysis
    np.testing.assert_array_equal(again.probes, case.studied.probes)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    with pytest.raises(SchemeError, match=r"made with another method: 'gptq', now 'rtn'; name another folder, or"):
        analyse(case.model, case.folder, replace(case.study, method="rtn"))
    assert {path: path.stat().st_mtime_ns for path in files} == before
    other = analyse(case.model, case.folder, replace(case.study, method="rtn"), resume=False)
    assert other.analysis.method == "rtn"
    assert all(path.stat().st_mtime_ns > before[path] for path in files)


def test_what_rests_on_candidates_goes_with_them(case: Case) -> None:
    shutil.rmtree(case.folder / "candidates")
    other = analyse(case.model, case.folder, replace(case.study, method="rtn"))
    assert other.analysis.method == "rtn"
    assert other.analysis.measured != case.studied.analysis.measured
    for block in (case.folder / "candidates").glob("*.bin"):
        block.unlink()
    (case.folder / "analysis.json").unlink()
    third = analyse(case.model, case.folder, case.study)  # nothing was finished: nothing is lost
    assert third.analysis.tensors == case.studied.analysis.tensors


def test_a_stopped_analysis_goes_on_and_ends_the_same(case: Case) -> None:
    (case.folder / "analysis.json").unlink()
    (case.folder / "projections.safetensors").unlink()
    blocks = sorted((case.folder / "candidates").glob("block-*.bin"))
    kept = blocks[0].stat().st_mtime_ns
    blocks[-1].unlink()
    again = analyse(case.model, case.folder, case.study)
    assert blocks[0].stat().st_mtime_ns == kept
    assert again.analysis.tensors == case.studied.analysis.tensors
    assert again.analysis.measured == case.studied.analysis.measured


def test_saved_statistics_stand_in_for_a_text(case: Case, tmp_path: Path) -> None:
    calibrate(case.model, tmp_path / "saved", case.study.calibration)
    found = analyse(case.model, tmp_path / "other", replace(case.study, statistics=tmp_path / "saved")).analysis
    assert "saved statistics" in found.calibration
    ours = {tensor.name: tensor.candidates[0].output for tensor in case.studied.analysis.tensors}
    for tensor in found.tensors:
        assert tensor.candidates[0].output == pytest.approx(ours[tensor.name], rel=0.3)


def test_experts_are_analysed_each_with_its_own_tokens(
    make: Callable[..., Model], study: Study, tmp_path: Path
) -> None:
    model = make("MixtralConfig", num_local_experts=4, num_experts_per_tok=2)
    found = analyse(model, tmp_path / "experts", replace(study, formats=("q4_0", "q8_0"))).analysis
    stacked = [tensor for tensor in found.tensors if "exps" in tensor.name]
    assert stacked
    for tensor in stacked:
        coarse, fine = tensor.candidates
        assert coarse.kl > 20 * fine.kl > 0
        assert coarse.output is not None
    # A router sends tokens elsewhere at once, which no second order knows of: what was measured corrects that.
    for one in (one for one in found.measured if one.what == "mix"):
        assert found.predicted(one.estimated) == pytest.approx(one.measured)


def test_what_does_not_belong_together_is_refused(case: Case, make: Callable[..., Model], tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="the analysis of another model"):
        open_study(make(), case.folder)
    with pytest.raises(MissingError, match="no finished analysis; make one with tersor analyse"):
        open_study(case.model, tmp_path)
    with pytest.raises(SchemeError, match="rewrites before a method change the weights"):
        analyse(case.model, tmp_path / "x", replace(case.study, method="awq+gptq"))
    with pytest.raises(MissingError, match="no such folder"):
        analyse(case.model, tmp_path / "none" / "x", case.study)


def test_too_few_sequences_to_keep_one_back_are_refused_and_two_are_enough(
    make: Callable[..., Model], study: Study, tmp_path: Path
) -> None:
    model = make(tie_word_embeddings=True)
    few = [replace(study, calibration=replace(study.calibration, sequences=count)) for count in (1, 2)]
    calibrate(model, tmp_path / "saved", few[0].calibration)
    for asked in (few[0], replace(few[0], statistics=tmp_path / "saved")):
        with pytest.raises(SchemeError, match=r"words.txt gives too few for that: at least 2 are needed"):
            analyse(model, tmp_path / "one", asked)
        assert not (tmp_path / "one").exists()
    assert len(analyse(model, tmp_path / "two", few[1]).calibration) == 2


def test_a_damaged_analysis_is_refused_by_place(case: Case) -> None:
    text = case.studied.analysis.to_json()
    assert Analysis.from_json(text) == case.studied.analysis
    for old, new, message in (
        ('"schema": "tersor.analysis/1"', '"schema": "x"', "schema 'x'"),
        ('"nbytes": ', '"nbytes": -', "bytes, "),
        ('"draws": ', '"drawn": ', "unknown keys"),
        ('"together": null', '"together": "NaN"', "a measured divergence is no positive number"),
        ('"together": null', '"together": -1.0', "a measured divergence is no positive number"),
        ("{", "", "not a JSON document"),
    ):
        with pytest.raises(FormatError, match=message):
            Analysis.from_json(text.replace(old, new, 1))

"""Plans: within their limits, by the evidence, and as good as predicted when the method makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tests.pipeline.planning.conftest import Case

from tersor.analyse.stitched import measure_mixes
from tersor.core.errors import SchemeError
from tersor.decoder import Decoder
from tersor.formats import get
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.planning import planning
from tersor.pipeline.planning.analysing import analyse, open_study
from tersor.pipeline.planning.goals import PlanGoal, cache_bytes
from tersor.pipeline.planning.measuring import measure_plan
from tersor.pipeline.planning.planning import Planner, shares_of
from tersor.pipeline.planning.sweep import parse_sweep, sweep
from tersor.pipeline.planning.targets import target_named
from tersor.pipeline.quantize import quantize


def test_a_size_is_never_exceeded_and_more_of_it_is_never_worse(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    losses = []
    for bits in (5.2, 5.6, 6.0, 6.5, 7.5):
        planned = planner.plan(PlanGoal(bits_per_weight=bits), trials=0)
        assert planned.file.predicted["bits_per_weight"] <= bits
        losses.append(planned.mix.loss)
    assert losses == sorted(losses, reverse=True)


def test_the_file_is_as_large_as_was_said_and_no_larger_than_asked(case: Case, tmp_path: Path) -> None:
    planner = Planner(case.model, case.studied)
    free = planner.plan(PlanGoal(bits_per_weight=6), trials=0)
    limit = free.file_bytes + 500
    planned = planner.plan(PlanGoal(max_bytes=limit), trials=3)
    assert planned.file_bytes <= limit
    how = How(method="gptq", calibration=case.study.calibration, proof=False)
    formats = planned.file.tensor_formats(case.model)
    card = quantize_calibrated(case.model, planned.file.file_type, tmp_path / "m.gguf", how, tensor_formats=formats)
    assert card is not None
    assert card.nbytes <= limit
    assert {t.name: t.format for t in card.plan.tensors if t.name in planned.mix.formats} == planned.mix.formats
    assert card.plan.nbytes == planned.file.predicted["tensor_bytes"]


def test_the_file_fits_as_well_where_its_text_has_a_longer_name(case: Case, tmp_path: Path) -> None:
    planner = Planner(case.model, case.studied)
    limit = planner.plan(PlanGoal(bits_per_weight=6), trials=0).file_bytes  # a mix fills that to the last byte
    planned = planner.plan(PlanGoal(max_bytes=limit), trials=0)
    source = case.study.calibration.source
    path = tmp_path / f"{'a' * 150}.txt"
    path.write_bytes(Path(source).read_bytes())
    how = How(method="gptq", calibration=replace(case.study.calibration, source=path), proof=False)
    formats = planned.file.tensor_formats(case.model)
    card = quantize_calibrated(case.model, planned.file.file_type, tmp_path / "m.gguf", how, tensor_formats=formats)
    assert card is not None
    assert planned.file_bytes < card.nbytes <= limit


def test_a_divergence_is_met_by_the_smallest_mix_and_shares_add_up(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    middle = planner.plan(PlanGoal(bits_per_weight=6), trials=0)
    planned = planner.plan(PlanGoal(max_kl=middle.kl), trials=0)
    assert planned.kl <= middle.kl * (1 + 1e-9)
    assert planned.mix.nbytes <= middle.mix.nbytes
    shares = shares_of(planner.analysis, planned.mix)
    assert sum(one.share for one in shares.values()) == pytest.approx(1)
    assert sum(one.nbytes for one in shares.values()) == planned.mix.nbytes
    rise = planner.plan(PlanGoal(max_perplexity_increase=5.0), trials=0)
    assert rise.file.predicted["perplexity_increase_percent"] <= 5.0


def later_is_better(*given: Any) -> Any:
    """What measure_mixes would return if each neighbour were better by more than the noise."""
    sides = given[3]
    noise = np.random.default_rng(0).normal(scale=1e-3, size=(len(sides), 64))
    return {side: SimpleNamespace(kl=1 - 0.1 * int(side) + noise[int(side)]) for side in sides}


def test_a_neighbour_that_is_better_beyond_the_noise_is_taken(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(case.model, case.studied)
    monkeypatch.setattr(planning, "measure_mixes", later_is_better)
    plans = [planner.plan(PlanGoal(bits_per_weight=bits)) for bits in (5.3, 5.6, 6.0, 6.5, 7.0)]
    assert any(planned.was_moved for planned in plans)
    for planned in plans:
        assert planned.together is not None
        assert planned.was_moved == (planned.together < 0.95)  # what is predicted is what the mix taken came to


def test_a_neighbour_is_better_by_the_lower_end_of_its_interval_alone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*given: Any) -> Any:  # 1: better in the mean, by chance; 2: surely; 3: surely, by less
        rough = np.where(np.arange(64) % 2, 2.0, -2.0)
        gains = {"1": 0.3 + rough, "2": 0.2 + rough / 100, "3": 0.1 + rough / 1000}
        return {side: SimpleNamespace(kl=3.0 - gains.get(side, np.zeros(64))) for side in given[3]}

    monkeypatch.setattr(planning, "measure_mixes", measured)
    monkeypatch.setattr(planning, "SLACK", 100.0)  # so that there are three
    planner = Planner(case.model, case.studied)
    planned = planner.plan(PlanGoal(bits_per_weight=6), trials=3)
    assert (planned.tried, planned.was_moved) == (3, True)
    assert planned.together == pytest.approx(2.8)
    planned = planner.plan(PlanGoal(bits_per_weight=6), trials=1)
    assert (planned.tried, planned.was_moved, planned.together) == (1, False, 3.0)
    monkeypatch.setattr(planning, "SLACK", 0.0)  # and now none
    assert planner.plan(PlanGoal(bits_per_weight=6), trials=3).tried == 0


def test_what_is_predicted_is_what_the_very_mix_came_to(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    planned = planner.plan(PlanGoal(bits_per_weight=6))
    decoder, studied = Decoder(case.model), case.studied
    found = measure_mixes(decoder, studied.surveyed, studied.measured_on, {"it": planned.mix.formats})["it"].kl.mean()
    assert planned.together == pytest.approx(found, rel=1e-6)
    assert planned.kl == planned.file.predicted["kl"] == pytest.approx(found, rel=1e-6)  # no run has moved it


@pytest.mark.parametrize("wrong", [0.6, 1.0, 1.6])
def test_a_divergence_is_kept_as_measured_where_the_curve_is_wrong(case: Case, wrong: float) -> None:
    rows = tuple(replace(one, measured=one.measured * wrong) for one in case.studied.analysis.measured)
    studied = replace(case.studied, analysis=replace(case.studied.analysis, measured=rows))
    planner, sure = Planner(case.model, studied), Planner(case.model, case.studied)
    for bits in (5.4, 6.0, 6.6):
        limit = sure.plan(PlanGoal(bits_per_weight=bits)).kl
        planned = planner.plan(PlanGoal(max_kl=limit))
        assert planned.kl <= limit
        assert planned.mix.nbytes <= 1.04 * sure.plan(PlanGoal(max_kl=limit)).mix.nbytes


def test_a_run_is_held_against_what_its_mix_came_to(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    planned = planner.plan(PlanGoal(bits_per_weight=5.6))
    measured, studied = measure_plan(case.model, case.studied, planned, threads=1)
    assert planned.together is not None
    factor = (measured.file.measured["kl"] / planned.together) ** 0.5  # one run is half believed
    again = Planner(case.model, studied).plan(PlanGoal(bits_per_weight=7))
    assert again.together is not None
    assert again.kl == pytest.approx(again.together * factor, rel=1e-6)


def test_a_target_gets_no_format_that_it_does_not_run(case: Case) -> None:
    some = frozenset({"q5_0", "q8_0"})
    assert (
        set(Planner(case.model, case.studied).plan(PlanGoal(bits_per_weight=6), trials=0).mix.formats.values()) - some
    )
    planned = Planner(case.model, case.studied, "gpu", allowed=some).plan(PlanGoal(bits_per_weight=7), trials=0)
    fronts = case.studied.analysis.tensors
    for tensor in fronts:
        known = {one.format for one in tensor.candidates}
        if known & some:
            assert planned.mix.formats[tensor.name] in some


def test_limits_that_exclude_each_other_are_refused_with_what_is_possible(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    small = planner.plan(PlanGoal(bits_per_weight=5.4), trials=0)
    both = PlanGoal(bits_per_weight=5.4, max_kl=small.kl / 10)
    with pytest.raises(SchemeError, match=r"nats take .* bytes of tensors with a choice, and .* are allowed"):
        planner.plan(both, trials=0)
    with pytest.raises(SchemeError, match=r"no mix of at most [\d,]+ bytes .* was measured to diverge by") as refused:
        planner.plan(both)
    came_to = float(str(refused.value).rsplit(" ", 1)[1])
    assert came_to == pytest.approx(planner.plan(PlanGoal(bits_per_weight=5.4), trials=1).kl, rel=0.1)
    with pytest.raises(SchemeError, match="the smallest mix of these formats takes"):
        planner.plan(PlanGoal(bits_per_weight=2))


def test_a_limit_that_the_curve_alone_calls_broken_is_measured(case: Case) -> None:
    rows = tuple(replace(one, measured=one.measured * 1.6) for one in case.studied.analysis.measured)
    pessimist = Planner(case.model, replace(case.studied, analysis=replace(case.studied.analysis, measured=rows)))
    limit = 1.2 * Planner(case.model, case.studied).plan(PlanGoal(bits_per_weight=6.0)).kl
    both = PlanGoal(bits_per_weight=6.0, max_kl=limit)
    with pytest.raises(SchemeError, match="are allowed"):
        pessimist.plan(both, trials=0)
    planned = pessimist.plan(both)
    assert planned.kl <= limit
    assert planned.file.predicted["bits_per_weight"] <= 6.0


def test_no_mix_is_measured_twice(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[frozenset[tuple[str, str]]] = []

    def measured(decoder: Any, surveyed: Any, ids: Any, sides: dict[str, dict[str, str]], progress: Any) -> Any:
        seen.extend(frozenset(formats.items()) for formats in sides.values())
        return measure_mixes(decoder, surveyed, ids, sides, progress)

    monkeypatch.setattr(planning, "measure_mixes", measured)
    told: list[tuple[str, int, int]] = []
    planner = Planner(case.model, case.studied, progress=lambda *step: told.append(step))
    first = planner.plan(PlanGoal(max_kl=planner.plan(PlanGoal(bits_per_weight=6)).kl))
    assert planner.plan(PlanGoal(max_kl=first.kl)).kl <= first.kl
    assert len(seen) == len(set(seen)) > 1
    assert set(told) == {("measuring mixes", 0, 2), ("measuring mixes", 1, 2)}


def test_memory_and_latency_are_sizes(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    middle = planner.plan(PlanGoal(bits_per_weight=6), trials=0)
    nbytes = int(middle.file.predicted["tensor_bytes"])
    held = planner.plan(PlanGoal(memory_bytes=nbytes + cache_bytes(case.model, 32), context=32), trials=0)
    assert held.mix == middle.mix
    fast = planner.plan(PlanGoal(max_latency_ms=nbytes / 1e6, bandwidth=1e9), trials=0)
    assert fast.mix == middle.mix
    assert fast.file.predicted["latency_ms"] == pytest.approx(nbytes / 1e6)
    # keys and values of two blocks, two heads of 16 numbers each, in 16 bits; float32 logits of 512 tokens
    rows = next(tensor.rows for tensor in case.model.tensors if tensor.name == "token_embd.weight")
    assert cache_bytes(case.model, 32) == 2 * (2 * 2 * 16) * 32 * 2 + rows * 512 * 4


def test_a_table_of_embeddings_that_a_token_does_not_read_takes_no_time(
    case: Case, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_mixes", later_is_better)
    monkeypatch.setattr(planning, "SLACK", 100.0)  # neighbours with another table too
    model = make(tie_word_embeddings=False)
    planner = Planner(model, analyse(model, tmp_path / "own", case.study))
    table = next(tensor for tensor in model.tensors if tensor.name == "token_embd.weight")
    kinds = set()
    for bits in (5.0, 5.2, 5.6, 6.0, 6.5, 7.0, 8.0):
        alike = planner.plan(PlanGoal(bits_per_weight=bits, max_latency_ms=1e9, bandwidth=1e9), trials=0)
        kind = alike.mix.formats[table.name]
        read = alike.file.predicted["tensor_bytes"] - table.rows * get(kind).row_bytes(table.columns)
        assert alike.file.predicted["latency_ms"] == pytest.approx(read / 1e6)
        for trials in (0, 1, 8, 64):
            fast = Planner(model, planner.studied).plan(
                PlanGoal(max_latency_ms=read / 1e6, bandwidth=1e9), trials=trials
            )
            kinds.add(fast.mix.formats[table.name])
            assert fast.file.predicted["latency_ms"] <= read / 1e6 * (1 + 1e-9)
            assert fast.file.predicted["tensor_bytes"] > read  # the table comes on top
    assert len(kinds) > 1
    for row in sweep(planner, [5.0, 6.0], is_measured=False, rate=1e9).rows:
        whole = round(planner.analysis.weights * row.bits_per_weight / 8)
        read = whole - table.rows * get(row.formats[table.name]).row_bytes(table.columns)
        assert row.tokens_per_s == pytest.approx(1e9 / read, rel=1e-6)


def test_a_tensor_that_is_fixed_keeps_its_format(case: Case) -> None:
    planner = Planner(case.model, case.studied, fixed=("ffn_down=q8_0",))
    planned = planner.plan(PlanGoal(bits_per_weight=5.7), trials=2)
    downs = {kind for name, kind in planned.mix.formats.items() if "ffn_down" in name}
    assert downs == {"q8_0"}
    with pytest.raises(SchemeError, match="matches no tensor that has a choice"):
        Planner(case.model, case.studied, fixed=("nothing=q8_0",))
    with pytest.raises(SchemeError, match="was not analysed; its candidates are q4_0, q5_0, q8_0"):
        Planner(case.model, case.studied, fixed=("attn_q=q6_k",))


def test_a_measured_plan_moves_later_predictions(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    planned = planner.plan(PlanGoal(bits_per_weight=5.6), trials=0)
    measured, studied = measure_plan(case.model, case.studied, planned, threads=1)
    found = measured.file.measured
    assert found["kl_low"] <= found["kl"] <= found["kl_high"]
    assert 0.4 < found["kl"] / planned.kl < 2.5
    again = Planner(case.model, open_study(case.model, case.folder)).plan(PlanGoal(bits_per_weight=5.6), trials=0)
    assert again.mix == planned.mix
    assert again.kl == pytest.approx((planned.kl * found["kl"]) ** 0.5, rel=1e-6)  # one run is half believed
    assert studied.analysis == open_study(case.model, case.folder).analysis


def test_a_curve_falls_as_it_grows_and_leaves_out_what_no_mix_reaches(case: Case) -> None:
    planner = Planner(case.model, case.studied)
    curve = sweep(planner, parse_sweep("3:8:0.5"), is_measured=True, rate=1e9)
    assert len(curve.rows) >= 5
    predicted = [row.kl for row in curve.rows]
    assert predicted == sorted(predicted, reverse=True)
    for row in curve.rows:
        assert row.measured is not None
        assert row.tokens_per_s == pytest.approx(8e9 / (planner.analysis.weights * row.bits_per_weight), rel=1e-6)
        assert 0.4 < row.measured.value / row.kl < 2.5
    with pytest.raises(SchemeError, match=r"no mix has 1 to 2 bits per weight"):
        sweep(planner, parse_sweep("1:2"), is_measured=False, rate=None)


@pytest.mark.parametrize("text", ["", "3", "3:2", "0:4", "a:b", "2:8:0", "2:8:0.0001"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SchemeError, match=r"FROM:TO|must rise"):
        parse_sweep(text)


def test_a_goal_needs_a_limit_that_is_a_number() -> None:
    with pytest.raises(SchemeError, match="a plan needs a goal"):
        PlanGoal()
    with pytest.raises(SchemeError, match="--bits-per-weight -1: a limit is a number above 0"):
        PlanGoal(bits_per_weight=-1)
    with pytest.raises(SchemeError, match="--max-kl inf"):
        PlanGoal(max_kl=float("inf"))
    with pytest.raises(SchemeError, match="--bandwidth -10"):
        PlanGoal(max_latency_ms=5.0, bandwidth=-10.0)


def test_a_plan_is_for_plain_rounding_too(case: Case, tmp_path: Path) -> None:
    planned = Planner(case.model, case.studied).plan(PlanGoal(bits_per_weight=6), trials=0)
    formats = planned.file.tensor_formats(case.model)
    card = quantize(case.model, planned.file.file_type, tmp_path / "m.gguf", tensor_formats=formats)
    assert card.plan.nbytes == planned.file.predicted["tensor_bytes"]
    assert replace(planned.file, method="").method == ""


def test_a_machine_by_name_brings_its_formats_memory_and_bandwidth() -> None:
    board = target_named("raspberry-pi-5-8gb")
    assert board.formats == ("q4_0", "q8_0", "f16")
    assert board.memory_bytes == 8e9
    assert board.read_bytes_per_s == pytest.approx(17.07e9)
    assert not board.is_here
    card = target_named("h100", container="compressed-tensors")
    assert set(card.formats) == {"int4-g128", "int8-channel"}
    assert card.read_bytes_per_s == 3350e9
    asked = target_named("h100", ("q6_k",))
    assert (asked.formats, asked.memory_bytes) == (("q6_k",), 81559 << 20)
    assert target_named("cpu").is_here
    with pytest.raises(SchemeError, match=r"no target 'h1000'; there are cpu, gpu, mobile, and machines by name; near"):
        target_named("h1000")
    with pytest.raises(SchemeError, match="nobody tells what vllm runs fast on raspberry-pi-4"):
        target_named("raspberry-pi-4", container="compressed-tensors")

"""Rates are found again in times that were made of them, and estimates say what they rest on or that they cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.core.nets.work import OperatorWork
from tersor.targets.estimating.estimate import Estimate, Unknown
from tersor.targets.estimating.latency import estimate_energy, estimate_latency, estimate_sustained
from tersor.targets.estimating.machine import Machine, of_profile, of_roofs
from tersor.targets.estimating.measured import FIXED, RATES, rates_of
from tersor.targets.estimating.rates import Rates, Timed, fit_rates, terms_of
from tersor.targets.profiles.table import profile
from tersor.targets.roofs import Roofs

HERE = replace(of_roofs(Roofs(1, 1e10, 1e11, 4e11, 1, "by hand", 0.1)), cache_bytes=None)
TERMS = {
    "call": 1e-5,
    "operator": 1e-6,
    "convolution int8": 1.2,
    "linear int8": 2.0,
    "activations int8 bytes": 0.5,
    "weights in memory": 0.3,
    "function float32 bytes": 0.8,
}
KNOWN = Rates(TERMS, 0.2, "a table of the test")


def operator(kind: Any, macs: int, weights: int, moved: int, arithmetic: str = "int8", **more: Any) -> OperatorWork:
    return OperatorWork("n", "Conv", kind, arithmetic, macs, weights, moved, moved, **more)


def drawn(seed: int) -> tuple[OperatorWork, ...]:
    random = np.random.default_rng(seed)
    rows = []
    for kind in ("convolution", "linear", "function", "move"):
        for _ in range(int(random.integers(1, 4))):
            macs, moved = (int(random.integers(10_000, 10_000_000)) for _ in range(2))
            is_function = kind in ("function", "move")
            rows.append(operator(kind, 0 if is_function else macs, macs // 20, moved // 20, *["float32"] * is_function))
    return tuple(rows)


def seconds(work: tuple[OperatorWork, ...]) -> float:
    return sum(TERMS[name] * amount for name, amount in terms_of(work, HERE).items())


def test_rates_are_found_again_beside_runs_that_were_disturbed() -> None:
    timed = [Timed(str(seed), drawn(seed), seconds(drawn(seed))) for seed in range(60)]
    timed += [replace(row, seconds=4 * row.seconds) for row in timed[:6]]
    found = fit_rates(timed, HERE)
    assert found.keys() == TERMS.keys()
    for name, value in TERMS.items():
        assert found[name] == pytest.approx(value, rel=0.05), name


def test_what_is_fused_or_only_moves_costs_nothing() -> None:
    work = drawn(3)
    fused = operator("function", 0, 0, 10_000_000, "float32", fused=True)
    assert terms_of((*work, fused, operator("move", 0, 0, 10**9)), HERE) == terms_of(work, HERE)


def test_terms_by_hand() -> None:
    rows = (operator("convolution", 2_000_000, 1000, 500), operator("function", 0, 0, 1000, "float32"))
    assert terms_of(rows, HERE) == {
        "call": 1.0,
        "operator": 2.0,
        "convolution int8": pytest.approx(1e-5),
        "activations int8 bytes": pytest.approx(1e-8),
        "weights in memory": pytest.approx(1e-7),
        "function float32 bytes": pytest.approx(2e-8),
    }
    assert terms_of(rows, replace(HERE, cache_bytes=2000))["weights in a cache"] == pytest.approx(1e-8)
    assert "weights in memory" in terms_of(rows, replace(HERE, cache_bytes=1999))


def test_an_estimate_has_an_interval_and_says_what_it_rests_on() -> None:
    work = drawn(1)
    found = estimate_latency(work, HERE, KNOWN)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(1e3 * seconds(work))
    assert math.log(found.high / found.value) == pytest.approx(0.2)
    assert any("a table of the test" in line for line in found.assumptions)
    elsewhere = estimate_latency(work, replace(HERE, is_measured=False, threads=2), KNOWN)
    assert isinstance(elsewhere, Estimate)
    assert elsewhere.high / elsewhere.low > 2 * found.high / found.low, "documents are trusted less"
    faster = estimate_latency(work, replace(HERE, peaks={name: 2 * rate for name, rate in HERE.peaks.items()}), KNOWN)
    assert isinstance(faster, Estimate)
    assert faster.value < found.value


@pytest.mark.parametrize(
    ("machine", "work", "told"),
    [
        (replace(HERE, peaks={"float32": 1e11}), drawn(1), "nobody tells its peak in int8"),
        (replace(HERE, read_bytes_per_s=None), drawn(1), "nobody tells how fast its memory is"),
        (HERE, (operator("depthwise", 1000, 10, 10),), "no run that was timed has depthwise int8"),
    ],
)
def test_without_a_basis_it_is_unknown(machine: Machine, work: tuple[OperatorWork, ...], told: str) -> None:
    latency = estimate_latency(work, machine, KNOWN)
    for found in (latency, estimate_sustained(latency, machine), estimate_energy(latency, machine)):
        assert isinstance(found, Unknown)
        assert told in str(found)


def test_warmth_and_energy_need_figures_of_their_own() -> None:
    latency = estimate_latency(drawn(1), HERE, KNOWN)
    assert isinstance(latency, Estimate)
    assert isinstance(estimate_sustained(latency, HERE), Unknown)
    assert isinstance(estimate_energy(latency, HERE), Unknown)
    told = replace(HERE, power_w=5.0, sustained_share=0.5)
    warm, energy = estimate_sustained(latency, told), estimate_energy(latency, told)
    assert isinstance(warm, Estimate)
    assert isinstance(energy, Estimate)
    assert warm.low == latency.low
    assert warm.high == pytest.approx(2 * latency.high)
    assert energy.high == pytest.approx(5 * latency.high)
    assert "mJ" in str(energy)


def test_profiles_are_read_as_far_as_they_tell() -> None:
    phone = of_profile(profile("snapdragon-8-gen-3"))
    assert (phone.is_measured, phone.threads) == (False, 6)
    assert phone.vectors == pytest.approx(phone.peaks["int8"] / 8)
    assert any("assumed" in line for line in phone.sources)
    found = estimate_latency(drawn(1), phone, KNOWN)
    assert isinstance(found, Estimate)
    assert found.high / found.low > 10, "nobody has measured one here"
    plain = tuple(replace(row, arithmetic="float32") for row in drawn(1))
    assert "its peak in float32" in str(estimate_latency(plain, phone, KNOWN))
    assert isinstance(estimate_latency(drawn(1), of_profile(profile("iphone-16-pro")), KNOWN), Unknown)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SchemeError, match="an estimate has an interval around it"):
        Estimate("x", 1.0, 2.0, 3.0, "ms", ("because",))
    with pytest.raises(SchemeError, match="an estimate has an interval around it"):
        Estimate("x", 2.0, 1.0, 3.0, "ms", ())
    with pytest.raises(SchemeError, match="above 0"):
        Machine("m", {"int8": 0.0}, None, True)
    with pytest.raises(SchemeError, match="is a share"):
        replace(HERE, sustained_share=1.5)
    with pytest.raises(SchemeError, match="not negative"):
        Rates({"call": -1.0}, 0.1, "x")


def test_an_engine_has_calls_of_its_own_and_shares_the_rest() -> None:
    ours, theirs = rates_of("executorch"), rates_of("onnxruntime")
    assert theirs.terms == RATES.terms
    assert {name for name in ours.terms if ours.terms[name] != theirs.terms[name]} == {"call", "operator"}
    assert rates_of("another").terms == RATES.terms
    assert set(FIXED) == {"executorch", "onnxruntime"}


def test_the_table_knows_both_arithmetics() -> None:
    for kind in ("convolution", "stem", "pointwise", "depthwise", "linear"):
        assert {f"{kind} float32", f"{kind} int8"} <= RATES.terms.keys()

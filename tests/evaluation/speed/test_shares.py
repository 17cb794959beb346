from __future__ import annotations

from pathlib import Path

import pytest

from tersor.core.evaluation import Metric
from tersor.evaluation.speed.interleave import Side
from tersor.evaluation.speed.runners import RUNNERS
from tersor.evaluation.speed.shares import noise_notes, share_notes, with_shares
from tersor.evaluation.speed.traffic import Traffic
from tersor.evaluation.speed.workload import Reading, Workload
from tersor.targets.processor import Processor
from tersor.targets.roofs import Roofs

FLOAT = Traffic(1e9, 5e8, 1e7, False, False, 0)
INTEGER = Traffic(1e9, 5e8, 1e7, True, False, 0)
ROOFS = Roofs(2, 20e9, 1e11, 4e11, 1, "native", 0.1)
MACHINE = Processor("cpu", 2, 2, (), 32 << 20)
WORK = Workload(prompt=100, batches=(1,))


def metrics(generation: float = 10.0, prompt: float = 50.0) -> list[Metric]:
    named = {"generation_tokens_per_s": generation, "prompt_tokens_per_s": prompt, "load_s": 1.0}
    return [Metric(name, value) for name, value in named.items()]


def shares(traffic: Traffic, roofs: Roofs = ROOFS) -> dict[str, float | None]:
    return {metric.name: metric.share for metric in with_shares(metrics(), traffic, roofs, WORK)}


def test_generation_is_a_share_of_the_read_bandwidth() -> None:
    assert shares(FLOAT)["generation_tokens_per_s"] == pytest.approx(10 * 1e9 / 20e9)


def test_the_prompt_is_a_share_of_the_arithmetic_that_suits_its_weights() -> None:
    operations = 2 * (5e8 * 100 + 1e7) / 2.0  # 100 tokens take two seconds
    assert shares(FLOAT)["prompt_tokens_per_s"] == pytest.approx(operations / 1e11)
    assert shares(INTEGER)["prompt_tokens_per_s"] == pytest.approx(operations / 4e11)
    without = Roofs(2, 20e9, 1e11, None, 1, "numpy", 0.1)
    assert shares(INTEGER, without)["prompt_tokens_per_s"] == pytest.approx(operations / 1e11)


def test_what_no_roof_limits_has_no_share() -> None:
    assert shares(FLOAT)["load_s"] is None


def test_weights_that_fit_in_the_cache_are_named() -> None:
    small = Traffic(1 << 20, 5e8, 1e7, False, False, 0)
    notes = share_notes("x.gguf", with_shares(metrics(1e6), small, ROOFS, WORK), small, ROOFS, MACHINE)
    assert any("1.0 MiB) fit in the last-level cache (32 MiB)" in note for note in notes)
    assert not any("exceeds" in note or "more than the measured" in note for note in notes)


def test_shares_above_one_are_explained() -> None:
    found = with_shares(metrics(1000.0, 5000.0), FLOAT, ROOFS, WORK)
    assert all(metric.share is None or metric.share > 1 for metric in found)
    notes = share_notes("x", found, FLOAT, ROOFS, MACHINE)
    assert any("generation reads more than the measured bandwidth" in note for note in notes)
    assert any(
        "the prompt exceeds the float32 rate: the engine multiplies in a narrower type" in note for note in notes
    )
    assert len(share_notes("x", with_shares(metrics(), FLOAT, ROOFS, WORK), FLOAT, ROOFS, MACHINE)) == 1


def quiet(steps: list[float]) -> Side:
    side = Side(Path("x.gguf"), RUNNERS["llama.cpp"])
    side.readings = [Reading(0.1, 0.1, (step,), {1: 1 / step}) for step in steps]
    return side


def test_a_busy_machine_is_named_by_its_load_and_by_the_spread() -> None:
    assert noise_notes([quiet([1.0, 1.01, 1.02])], WORK, 0.1, 2) == ()
    (load,) = noise_notes([quiet([1.0, 1.0])], WORK, 1.75, 2)
    assert "the load average was 1.8 at the start, on 2 cores" in load
    (wide,) = noise_notes([quiet([1.0, 1.5, 2.0])], WORK, None, 2)
    assert "x.gguf: the middle half of the rounds spreads over" in wide
    assert "generation_tokens_per_s" in wide

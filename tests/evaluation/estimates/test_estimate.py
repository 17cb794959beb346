from __future__ import annotations

from dataclasses import replace

import pytest

from tersor.core.errors import SchemeError
from tersor.evaluation.estimates.estimate import Estimate, Load, estimated
from tersor.evaluation.estimates.limits import Machine, machine_of
from tersor.evaluation.estimates.shape import DecoderShape
from tersor.evaluation.speed.traffic import Traffic
from tersor.targets.profiles.profile import Figure
from tersor.targets.profiles.table import PROFILES, profile

SHAPE = DecoderShape(64, 128, 64, (64,) * 2, (64,) * 2, (None,) * 2, 1000, 4096)
TRAFFIC = Traffic(1e9, 4e8, 1e8, is_integer=True, is_mixture=False, file_bytes=0)
LOAD = Load(1024, 512, 1, 512, 16, 2, "int8")
MACHINE = Machine("box", "gpu", Figure(4e9, "a label"), Figure(1e11, "a label"), {"int8": Figure(1e12, "a label")})


def made(traffic: Traffic, stored: float, shape: DecoderShape, load: Load, machine: Machine) -> Estimate:
    return estimated("m", "f", traffic, stored, shape=shape, load=load, machine=machine)


def test_one_token_at_a_time_reads_weights_and_cache() -> None:
    found = made(TRAFFIC, 1.5e9, SHAPE, LOAD, MACHINE)
    cache = 1024 * 2 * 128 * 2
    assert found.amount("cache_bytes") == cache
    assert found.amount("decode_tokens_per_s") == pytest.approx(1e11 / (1e9 + cache))
    assert found.fits is True


def test_large_batches_are_bound_by_arithmetic_and_never_slower_than_small_ones() -> None:
    speeds = [
        made(TRAFFIC, 1e9, SHAPE, replace(LOAD, batch=batch), MACHINE).amount("decode_tokens_per_s")
        for batch in (1, 2, 8, 64, 512)
    ]
    assert speeds == sorted(speeds)  # type: ignore[type-var]  # numbers all
    assert speeds[-1] == pytest.approx(1e12 / (2 * 5e8))


def test_a_prompt_is_bound_by_arithmetic_and_by_the_weights_of_every_chunk() -> None:
    found = made(TRAFFIC, 1e9, SHAPE, LOAD, MACHINE)
    operations = 2 * (4e8 * 512 + 1e8) + SHAPE.attention_operations(512)
    assert found.amount("first_token_s") == pytest.approx(operations / 1e12)
    tiny = made(TRAFFIC, 1e9, SHAPE, replace(LOAD, chunk=1), MACHINE)
    assert tiny.amount("first_token_s") == pytest.approx(512 * 1e9 / 1e11)


def test_the_longest_context_and_the_largest_batch_are_the_last_that_fit() -> None:
    found = made(TRAFFIC, 1.5e9, SHAPE, LOAD, MACHINE)
    longest, largest = found.amount("longest_context"), found.amount("largest_batch")
    assert longest is not None
    assert largest is not None
    for context, batch, fits in (
        (int(longest), 1, True), (int(longest) + 1, 1, False), (1024, int(largest) - 300, True),
        (1024, int(largest) + 1, False),
    ):  # fmt: skip
        load = replace(LOAD, context=context, batch=batch)
        assert made(TRAFFIC, 1.5e9, SHAPE, load, MACHINE).fits is fits, (context, batch)
    full = made(TRAFFIC, 4e9, SHAPE, LOAD, MACHINE)
    assert (full.fits, full.amount("longest_context")) == (False, 0)


def test_a_mixture_reads_more_experts_the_more_sequences_there_are_but_never_more_than_all() -> None:
    mixture = Traffic(1e9, 4e8, 1e8, True, True, 0, expert_bytes=8e8)
    shape = replace(SHAPE, experts=16, used=2)
    fast = replace(MACHINE, peaks={})

    def step(batch: int) -> float:
        speed = made(mixture, 1e9, shape, replace(LOAD, batch=batch), fast).amount("decode_tokens_per_s")
        assert speed is not None
        return batch / speed * 1e11 - batch * 1024 * 2 * 128 * 2

    assert step(1) == pytest.approx(1e9)
    assert step(2) == pytest.approx(2e8 + 8 * 8e8 * (1 - (14 / 16) ** 2))
    assert step(4096) == pytest.approx(2e8 + 8 * 8e8, rel=1e-3)


def test_as_many_tokens_live_at_once_as_are_prompted_or_answered_together() -> None:
    for prompt, batch, tokens in ((1, 4000, 4000), (300, 1, 300), (300, 40, 300)):
        load = replace(LOAD, context=1024, prompt=prompt, chunk=512, batch=batch)
        found = made(TRAFFIC, 1e9, SHAPE, load, machine_of(profile("h100")))
        assert found.amount("activation_bytes") == SHAPE.live_values(tokens, batch) * load.live_bytes


def test_what_nobody_says_is_unknown_with_the_reason() -> None:
    found = made(TRAFFIC, 1e9, SHAPE, LOAD, replace(machine_of(profile("iphone-16-pro")), memory=None))
    assert found.fits is None
    unknown = {amount.name: amount.basis for amount in found.amounts if amount.value is None}
    assert {"memory_bytes", "decode_tokens_per_s", "prefill_tokens_per_s", "longest_context"} <= set(unknown)
    assert "bandwidth" in unknown["decode_tokens_per_s"]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_can_be_estimated_for_and_every_figure_says_what_it_rests_on(name: str) -> None:
    found = made(TRAFFIC, 1e9, SHAPE, LOAD, machine_of(profile(name)))
    for amount in found.amounts:
        assert amount.basis
        assert (amount.value is None) == (amount.sense == "unknown")


def test_memory_is_as_sure_as_its_source_and_so_is_what_fits_in_it() -> None:
    def senses(name: str) -> list[str]:
        found = {amount.name: amount for amount in made(TRAFFIC, 1e9, SHAPE, LOAD, machine_of(profile(name))).amounts}
        return [found[name].sense for name in ("memory_bytes", "longest_context", "largest_batch")]

    assert senses("h100") == ["exact", "at most", "at most"]
    assert senses("raspberry-pi-5-8gb") == ["about"] * 3
    assert senses("apple-m4") == ["at most"] * 3
    two = machine_of(profile("pixel-8")).times(2).memory
    assert two is not None
    assert (two.value, two.sense) == (16e9, "about")


def test_generation_is_bound_at_the_full_context() -> None:
    found = {amount.name: amount for amount in made(TRAFFIC, 1e9, SHAPE, LOAD, MACHINE).amounts}
    assert "and, at the full context, 0.0005243 GB of cache a step" in found["decode_tokens_per_s"].basis


def test_several_machines_have_the_memory_and_the_bandwidth_of_all() -> None:
    one = made(TRAFFIC, 1e9, SHAPE, LOAD, MACHINE)
    four = made(TRAFFIC, 1e9, SHAPE, LOAD, MACHINE.times(4))
    for name in ("memory_bytes", "decode_tokens_per_s"):
        assert four.amount(name) == pytest.approx(4 * (one.amount(name) or 0))
    assert any("what the machines tell each other" in text for text in four.assumptions)


@pytest.mark.parametrize(("change", "message"), [({"batch": 0}, "batch must be"), ({"prompt": 2000}, "does not fit")])
def test_loads_that_make_no_sense_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        replace(LOAD, **change)  # type: ignore[arg-type]  # whole numbers

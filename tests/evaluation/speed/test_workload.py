from __future__ import annotations

from typing import Any

import pytest

from tersor.core.errors import SchemeError
from tersor.evaluation.speed.workload import BATCH_PROMPT, Workload


@pytest.mark.parametrize("name", ["prompt", "generate", "rounds", "warmups", "loads", "threads", "timeout_s"])
def test_counts_must_be_positive(name: str) -> None:
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(SchemeError, match=f"{name} must be positive, got 0"):
        Workload(**wrong)


@pytest.mark.parametrize("batches", [(0,), (65,), (2, 2)])
def test_batches_must_differ_and_be_possible(batches: tuple[int, ...]) -> None:
    with pytest.raises(SchemeError, match="batches must be different numbers from 1 to 64"):
        Workload(batches=batches)


def test_parallel_sequences_get_short_prompts() -> None:
    assert Workload(prompt=500).batch_prompt == BATCH_PROMPT
    assert Workload(prompt=3).batch_prompt == 3


def test_the_settings_hold_what_was_asked_for_and_nothing_measured() -> None:
    assert Workload(prompt=5, batches=(1, 3)).settings() == Workload(prompt=5, batches=(1, 3)).settings()
    assert Workload(batches=(1, 3)).settings()["batches"] == "1,3"

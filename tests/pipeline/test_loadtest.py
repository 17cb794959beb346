"""Options that make no sense, and the verdict over several rates; whole runs are in tests/deploy/load/test_runs.py."""

from __future__ import annotations

import pytest

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Limit
from tersor.deploy.load.summary import StepResult
from tersor.pipeline.deploy.loadtest import LoadTest, loadtest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": ()}, "no rate"),
        ({"connections": 0}, "connections must be at least 1"),
        ({"connections": 10**9}, "files that this process may open"),
        ({"timeout_s": 0.0}, "a timeout is more than 0"),
        ({"warmup": -1.0}, "a step lasts"),
        ({"within_ms": 0.0}, "within_ms is a time"),
        ({"max_p99_ms": -1.0}, "max_p99_ms is a time"),
        ({"min_goodput": 2.0}, "min_goodput is a share"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        loadtest("http://localhost:1", **options)  # type: ignore[arg-type]  # each is of its own type


def test_a_step_that_failed_outweighs_one_that_is_invalid() -> None:
    def step(outcome: str, invalid: str = "") -> StepResult:
        limits = () if not outcome else (Limit("goodput", 1.0, True, outcome, ""),)  # type: ignore[arg-type]  # one of three
        return StepResult(1, 1, 1, (), {}, {}, limits, invalid)

    def verdict(*steps: StepResult) -> str | None:
        return LoadTest("", "", {}, steps).outcome

    assert verdict(step("pass"), step("inconclusive", "late"), step("fail")) == "fail"
    assert verdict(step("pass"), step("inconclusive")) == "inconclusive"
    assert verdict(step("pass"), step("pass")) == "pass"
    assert verdict(step("", "late")) == "inconclusive"
    assert verdict(step("")) is None

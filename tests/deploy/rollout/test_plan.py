"""What a deployment may say of a rollout."""

from __future__ import annotations

from typing import Any

import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.plan import RolloutPlan, read_plan


def test_what_is_left_out_is_as_usual() -> None:
    assert read_plan("rollout", {}) == RolloutPlan()
    found = read_plan("rollout", {"shadow_time": 5.0, "error_rate": {"margin": 0.01}})
    assert (found.shadow_time, found.error_rate.margin, found.error_rate.level) == (
        5.0,
        0.01,
        RolloutPlan().error_rate.level,
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"steps": [50, 5]}, "rising shares in percent"),
        ({"steps": []}, "rising shares in percent"),
        ({"shadow": 0}, "shadow is a share of requests above 0"),
        ({"shadow": 101}, "shadow is a share of requests above 0"),
        ({"shadow_time": 0}, "shadow_time is a share of the time above 0"),
        ({"shadow_time": 100.5}, "shadow_time is a share of the time above 0"),
        ({"look": 0}, "look is a number of requests"),
        ({"max_time_s": 600.0}, "least_s < most_s"),
        ({"shadows": 1}, "rollout: unknown shadows; there are steps"),
        ({"agreement": {"best": 1}}, "rollout.agreement: unknown best"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(SchemeError, match="rollout") as caught:
        read_plan("rollout", given)
    assert reason in str(caught.value)

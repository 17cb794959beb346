"""Figures from counters, sessions that end, and rollouts told in every shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tersor.deploy.config import Key
from tersor.deploy.gateway.dashboard.rollout import rollout_section
from tersor.deploy.gateway.dashboard.samples import KEPT, Samples, quantile
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.operating.sessions import LIFE_S, MOST, MOST_OF_KEY, Sessions

from .reading import Parsed

ROLLOUT: dict[str, Any] = {
    "candidate": "<i>new</i>", "control": "old", "state": "canary", "steps": [0.05, 0.5, 1.0], "weight": 0.05,
    "since": {"at": "2026-01-02T03:04:05Z", "who": "ann", "why": "<b>"},
    "progress": {"samples": 3, "needed_samples": 10, "elapsed_s": 1.0, "needed_s": 60.0, "most_s": 100.0},
    "tests": [{"name": "agreement", "verdict": "undecided", "to_harm": 0.25, "to_safe": 0.75, "samples": 8,
               "required": True, "numbers": {"agreement": 0.99, "none_yet": None}}],
    "next": {"action": "WAIT", "reason": "missing: 3 of 10 samples"},
    "history": [{"at": "2026-01-02T03:04:05Z", "state": "shadow", "weight": 0.0, "who": "ann", "why": "begun"}],
}  # fmt: skip


def test_quantiles_lie_between_the_bounds_that_hold_them() -> None:
    times = np.random.default_rng(0).lognormal(-3, 1, 5000)
    bounds = [0.001 * 1.25**power for power in range(50)]
    within = {bound: float((times <= bound).sum()) for bound in [*bounds, math.inf]}
    for share in (0.5, 0.95, 0.99):
        assert quantile(within, share) == pytest.approx(np.quantile(times, share), rel=0.13)
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({1.0: 0.0, math.inf: 4.0}, 0.5) == 1.0


def test_samples_tell_what_was_since_and_are_bounded() -> None:
    metrics = Metrics()
    samples = Samples(metrics)
    metrics.requests.labels("a", "old", "200").inc(7)  # before anybody looked
    samples.take()
    assert samples.figures("a") is None
    for variant, count in (("old", 6), ("new", 2)):
        metrics.requests.labels("a", variant, "200").inc(count)
        for _ in range(count):
            metrics.seconds.labels("a", variant).observe(0.03)
    metrics.fallbacks.labels("a", "fault").inc(2)
    samples.take()
    figures = samples.figures("a")
    assert figures is not None
    assert (figures.answered, figures.fallback_share) == ({"old": 6.0, "new": 2.0}, 0.25)
    assert all(value is not None and 0.025 <= value <= 0.05 for value in figures.latencies)
    assert samples.figures("b") is not None  # nothing was asked
    for _ in range(KEPT + 20):
        samples.take()
    told = samples.series(["a", "b"])
    assert {len(line) for line in told["models"]["a"].values()} == {KEPT - 1} == {len(told["at"])}
    figures = samples.figures("a")
    assert figures is not None
    assert (figures.rate, figures.fallback_share, figures.latencies) == (0.0, None, (None, None, None))


def test_sessions_are_few_and_end() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    ann, bob = Key("ann", "0" * 64), Key("bob", "1" * 64)
    first = sessions.begin(ann)
    mine = [sessions.begin(ann) for _ in range(MOST_OF_KEY)]
    assert sessions.find(first) is None
    assert all(sessions.find(one) for one in mine)
    assert len({*mine}) == MOST_OF_KEY
    others = [sessions.begin(Key(f"k{index}", "2" * 64)) for index in range(MOST)]
    assert sessions.find(mine[-1]) is None
    assert all(sessions.find(one) for one in others)
    his = sessions.begin(bob)
    sessions.keep([ann])
    assert sessions.find(his) is None
    last = sessions.begin(ann)
    now[0] = LIFE_S - 1.0
    assert sessions.find(last) is not None
    now[0] = LIFE_S
    assert sessions.find(last) is None
    assert sessions.find(None) is None
    assert sessions.find("\udcff") is None


def test_a_rollout_shows_how_near_each_test_is_to_deciding() -> None:
    page = Parsed(rollout_section(ROLLOUT))
    labels = [one["aria-label"] for one in page.all("svg")]
    assert labels == [
        "The candidate answers 5 % of requests; the steps are 5 %, 50 %, 100 %",
        "agreement: 75 % of the way to safe",
        "agreement: 25 % of the way to harmful",
    ]
    widths = [one["width"] for one in page.all("rect") if str(one["class"]).startswith("toward")]
    assert widths == ["75.00%", "25.00%"]
    assert "<i>new</i> beside old" in page.said
    assert "3 of 10 samples, 1 of 60 s" in page.said
    assert page.all("i") == []


@pytest.mark.parametrize("odd", [None, 3, "text", [], {}, [None], [{}], {"x": []}, float("nan"), True])
@pytest.mark.parametrize("name", [*ROLLOUT])
def test_a_rollout_that_is_told_otherwise_is_shown_as_far_as_it_goes(name: str, odd: object) -> None:
    assert "Rollout" in Parsed(rollout_section({**ROLLOUT, name: odd})).said
    rest = {other: value for other, value in ROLLOUT.items() if other != name}
    assert "Rollout" in Parsed(rollout_section(rest)).said

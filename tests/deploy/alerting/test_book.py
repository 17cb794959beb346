"""The state of alerts over time: for-durations, hysteresis, what is gone, other limits, a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.alerting.book import Alert, Book
from tersor.deploy.alerting.rules import RULES, Rule, changed

WALL = 1_800_000_000.0
Told: TypeAlias = list[tuple[int, str]]
SHARE, AGREEMENT = RULES["HighErrorShare"], RULES["LowAgreement"]


def seen(rule: Rule, value: float | None) -> dict[tuple[str, str], dict[str, float | None]]:
    return {("m", "q"): {rule.figure: value}}


def looked(rule: Rule, values: Sequence[tuple[float, float | None]], book: Book | None = None) -> Told:
    """Looks at moments with values → number of the look and what it told."""
    book = Book({rule.name: rule}) if book is None else book
    told: Told = []
    for number, (now, value) in enumerate(values):
        told += [(number, alert.state) for alert in book.look(now, WALL + now, seen(rule, value))]
    return told


def test_it_fires_once_it_has_lasted_and_ends_beyond_its_limit() -> None:
    values = [(0, 0.02), (119, 0.02), (120, 0.02), (125, 0.007), (130, 0.0051), (135, 0.005), (140, 0.02)]
    assert looked(SHARE, values) == [(2, "firing"), (5, "resolved")]
    assert looked(AGREEMENT, [(0, 0.9), (300, 0.9), (310, 0.975), (320, 0.98)]) == [(1, "firing"), (3, "resolved")]


def test_a_moment_on_the_good_side_or_without_a_figure_begins_it_anew() -> None:
    for gap in (0.01, None):
        values = [(0, 0.02), (100, 0.02), (110, gap), (120, 0.02), (230, 0.02), (240, 0.02)]
        assert looked(SHARE, values) == [(5, "firing")]


def test_what_nothing_tells_of_any_more_goes_on_firing() -> None:
    assert looked(SHARE, [(0, 0.02), (120, 0.02), (500, None), (9999, None), (10_000, 0.0)]) == [
        (1, "firing"), (4, "resolved"),
    ]  # fmt: skip


def test_a_rule_without_a_duration_fires_at_once() -> None:
    assert looked(RULES["InputDrift"], [(0, 0.0), (1, 1.0), (2, 1.0), (3, 0.0)]) == [(1, "firing"), (3, "resolved")]


def test_a_variant_that_is_gone_ends_what_fired_and_says_nothing_of_what_was_pending() -> None:
    book = Book()
    figures = {SHARE.figure: 0.02, AGREEMENT.figure: 0.9}
    book.look(0, WALL, {("m", "q"): figures, ("m", "f"): figures})
    assert {alert.rule for alert in book.look(120, WALL, {("m", "q"): figures, ("m", "f"): figures})} == {SHARE.name}
    (ended,) = book.look(125, WALL + 125, {("m", "f"): figures})
    assert (ended.key, ended.state, ended.since, ended.value) == ((SHARE.name, "m", "q"), "resolved", WALL + 125, 0.02)
    assert {key[2] for key in book.alerts} == {"f"}


def test_each_variant_has_a_time_of_its_own() -> None:
    book = Book()
    bad, good = {SHARE.figure: 0.5}, {SHARE.figure: 0.0}
    book.look(0, WALL, {("m", "q"): bad, ("n", "q"): good})
    book.look(60, WALL, {("m", "q"): bad, ("n", "q"): bad})
    (first,) = book.look(120, WALL, {("m", "q"): bad, ("n", "q"): bad})
    (second,) = book.look(180, WALL, {("m", "q"): bad, ("n", "q"): bad})
    assert (first.model, second.model) == ("m", "n")


@pytest.mark.parametrize("jump", [-7200.0, 7200.0, -1e9])
def test_a_wall_clock_that_jumps_neither_delays_nor_hastens_it(jump: float) -> None:
    book = Book()
    assert not book.look(0, WALL, seen(SHARE, 0.02))
    assert not book.look(100, WALL + jump, seen(SHARE, 0.02))
    (alert,) = book.look(120, WALL + jump + 20, seen(SHARE, 0.02))
    assert (alert.state, alert.since) == ("firing", WALL + jump + 20)


def test_a_restart_goes_on_with_what_fired_and_waits_anew_for_what_was_pending() -> None:
    book = Book()
    book.look(0, WALL, seen(SHARE, 0.02))
    book.look(120, WALL + 120, {("m", "q"): {SHARE.figure: 0.02, AGREEMENT.figure: 0.9}})
    kept = book.to_object()
    assert {one["state"] for one in kept} == {"firing", "pending"}
    again = Book()
    again.restore([*kept, {"alert": "NoSuch"}, {**kept[0], "alert": "NoSuch"}, {**kept[0], "since": "?"}, 3, None])
    assert again.alerts == {(SHARE.name, "m", "q"): Alert(SHARE.name, "m", "q", "firing", WALL + 120, 0.02, 0.01)}
    assert not again.look(5, WALL + 200, {("m", "q"): {SHARE.figure: 0.007, AGREEMENT.figure: 0.9}})
    assert [alert.rule for alert in again.look(305, WALL + 500, {("m", "q"): {AGREEMENT.figure: 0.9}})] == [
        AGREEMENT.name
    ]
    assert {alert.rule for alert in again.look(310, WALL + 510, {})} == {SHARE.name, AGREEMENT.name}
    for nonsense in (None, "firing", {"alert": 1}, 7):
        again.restore(nonsense)
    assert not again.alerts


def test_limits_that_change_while_it_fires_hold_from_the_next_look() -> None:
    book = Book()
    looked(SHARE, [(0, 0.02), (120, 0.02)], book)
    book.rules = changed({SHARE.name: 0.05})
    (ended,) = book.look(125, WALL, seen(SHARE, 0.02))  # the end is 0.025 now
    assert (ended.state, ended.limit) == ("resolved", 0.05)
    assert looked(SHARE, [(130, 0.04), (999, 0.04)], book) == []


@pytest.mark.parametrize(
    ("name", "limit", "clear"),
    [
        ("HighErrorShare", 0.1, 0.05),
        ("HighErrorShare", 0.0, 0.0),
        ("SlowAnswers", 0.2, 0.16),
        ("LowAgreement", 0.994, 0.996),
        ("LowAgreement", 1.0, 1.0),
        ("LowAgreement", 0.5, 0.51),
        ("LowAccuracy", 0.0, 0.01),
    ],
)
def test_another_limit_moves_the_end_along(name: str, limit: float, clear: float) -> None:
    rule = changed({name: limit})[name]
    assert rule.limit == limit
    assert rule.clear == pytest.approx(clear)
    assert changed({name: {"limit": limit, "for_s": 7}})[name] == replace(rule, for_s=7)


@given(name=st.sampled_from([name for name, rule in RULES.items() if not rule.is_flag]), limit=st.floats(0, 1))
def test_whatever_the_limit_is_a_figure_can_get_to_the_end(name: str, limit: float) -> None:
    rule = changed({name: limit})[name]
    assert not rule.is_over(rule.clear, rule.limit)
    best = 1.0 if rule.is_below else 0.0
    assert not rule.is_over(best, rule.clear)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"HighErrors": 0.1}, "no alert 'HighErrors'; there are EngineDown, "),
        ({"HighErrorShare": 1.5}, "limits.HighErrorShare: from 0 to 1, not 1.5"),
        ({"LowAgreement": -0.1}, "from 0 to 1, not -0.1"),
        ({"SlowAnswers": float("nan")}, "a number is wanted, not nan"),
        ({"SlowAnswers": True}, "a number is wanted, not True"),
        ({"SlowAnswers": "10"}, "a number is wanted, not '10'"),
        ({"SlowAnswers": None}, "a number is wanted, not None"),
        ({"SlowAnswers": {}}, "a number, or limit and for_s, are wanted"),
        ({"SlowAnswers": {"limit": 1, "until": 2}}, "a number, or limit and for_s, are wanted"),
        ({"SlowAnswers": {"for_s": -1}}, "limits.SlowAnswers.for_s: from 0 to 86400, not -1"),
        ({"EngineDown": 0.3}, "limits.EngineDown: it is so or not, without a limit"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(limits: Mapping[str, object], words: str) -> None:
    with pytest.raises(SchemeError, match=words.replace("(", r"\(")):
        changed(limits)


def test_what_is_told_says_what_where_and_what_to_do() -> None:
    book = Book(changed({SHARE.name: 0.5}))
    looked(SHARE, [(0, 0.75)], book)
    (alert,) = book.look(120, WALL, seen(SHARE, 0.75))
    assert alert.text() == (
        "critical: HighErrorShare of m/q. Requests get no answer: error_share is 0.75, above 0.5; "
        "roll back to the fallback, or give the deployment one"
    )
    (ended,) = book.look(130, WALL, seen(SHARE, 0.0))
    assert ended.text() == "over: HighErrorShare of m/q, error_share is 0"
    assert ended.to_object()["state"] == "resolved"


def told_by_definition(rule: Rule, values: Sequence[tuple[float, float | None]]) -> Told:
    """The same by looking back over all values from each moment on."""
    told: Told = []
    for number, (now, value) in enumerate(values):
        is_firing = bool(told) and told[-1][1] == "firing"
        if is_firing:
            if value is not None and not rule.is_over(value, rule.clear):
                told.append((number, "resolved"))
            continue
        since = told[-1][0] + 1 if told else 0
        run = []
        for at, earlier in reversed(values[since : number + 1]):
            if earlier is None or not rule.is_over(earlier, rule.limit):
                break
            run.append(at)
        if run and now - run[-1] >= rule.for_s:
            told.append((number, "firing"))
    return told


STEPS = st.tuples(
    st.integers(1, 200), st.sampled_from([None, 0.0, 0.004, 0.005, 0.007, 0.01, 0.02, 0.9, 0.97, 0.98, 1])
)


@settings(deadline=None)
@given(steps=st.lists(STEPS, max_size=40), name=st.sampled_from([SHARE.name, AGREEMENT.name, "InputDrift"]))
def test_it_fires_and_ends_as_the_definition_says(steps: list[tuple[int, float | None]], name: str) -> None:
    now, values = 0.0, []
    for seconds, value in steps:
        now += seconds
        values.append((now, value))
    told = looked(RULES[name], values)
    assert told == told_by_definition(RULES[name], values)
    states = [state for _, state in told]
    assert states == ["firing", "resolved"] * (len(states) // 2) + ["firing"] * (len(states) % 2)

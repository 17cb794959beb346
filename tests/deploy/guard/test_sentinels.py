"""Sentinels of one reply, each on the smallest reply that it speaks or keeps silent at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.guard import SENTINELS, Finding, LengthCaps, Limits, ReplyWatch, Token, judge_tensors
from tersor.deploy.guard.findings import found, has_fault
from tersor.deploy.guard.sentinels import entropy_bounds

VOCABULARY = 1000
PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "guarding-replies.md"


def watch(*tokens: Token, vocabulary: int | None = VOCABULARY, limits: Limits | None = None) -> tuple[Finding, ...]:
    """What a reply of these tokens gives, before it ends."""
    made = ReplyWatch(limits, vocabulary=vocabulary)
    for token in tokens:
        made.add(token)
    return made.findings


def names(findings: tuple[Finding, ...]) -> list[str]:
    """The sentinels that spoke."""
    return [finding.sentinel for finding in findings]


def plain(count: int, **fields: Any) -> list[Token]:
    """Tokens that all differ."""
    return [Token(number, b"a", -1.0)._replace(**fields) for number in range(count)]


def test_a_reply_without_numbers_is_judged_by_its_tokens_and_text_alone() -> None:
    assert watch(*(Token(number, "word ") for number in range(500))) == ()
    assert names(watch(*(Token(number % 3, b"\xff") for number in range(40)))) == ["invalid_utf8", "repetition"]


@pytest.mark.parametrize(
    "token",
    [
        Token(1, b"", math.nan),
        Token(1, b"", math.inf),
        Token(1, b"", -math.inf),
        Token(1, b"", 0.01),
        Token(1, b"", -1.0, top=((1, -1.0), (2, math.nan))),
        Token(1, b"", -1.0, top=((1, 0.5),)),
        Token(1, b"", -1.0, entropy=math.nan),
        Token(1, b"", -1.0, entropy=math.inf),
        Token(1, b"", -1.0, entropy=-0.5),
    ],
)
def test_a_number_that_is_none_is_a_fault_at_its_token(token: Token) -> None:
    assert watch(*plain(3), token) == (Finding("bad_number", 3, 1.0, 0.0, "fault"),)


def test_tokens_that_grammar_forbids_and_rounding_are_no_bad_numbers() -> None:
    assert watch(Token(1, b"a", 0.0005, top=((1, 0.0), (2, -math.inf)), entropy=-1e-7)) == ()


def test_entropy_that_collapses_or_fills_the_vocabulary_is_a_fault_once_the_window_is_full() -> None:
    limits = Limits()
    low, high = 0.9 * limits.entropy_floor, 1.01 * limits.entropy_ceiling * math.log(VOCABULARY)
    assert names(watch(*plain(15, entropy=low))) == []
    (finding,) = watch(*plain(16, entropy=low))
    assert finding == Finding("entropy_collapse", 15, finding.value, limits.entropy_floor, "fault")
    assert finding.value == pytest.approx(low)
    assert names(watch(*plain(15, entropy=high))) == []
    (finding,) = watch(*plain(40, entropy=high))
    assert finding == Finding("entropy_garbage", 15, finding.value, limits.entropy_ceiling, "fault")
    assert finding.value == pytest.approx(1.01 * limits.entropy_ceiling)
    assert watch(*plain(40, entropy=0.99 * high / 1.01)) == watch(*plain(40, entropy=1.1 * low / 0.9)) == ()
    assert watch(*plain(40, entropy=high), vocabulary=None) == ()


def test_a_window_moves_on() -> None:
    high = math.log(VOCABULARY)
    assert names(watch(*plain(100, entropy=2.0), *plain(16, entropy=high))) == ["entropy_garbage"]
    assert watch(*plain(100, entropy=2.0), *plain(3, entropy=high), *plain(100, entropy=2.0)) == ()


@given(st.lists(st.floats(-8, 8), min_size=3, max_size=40), st.integers(1, 40))
def test_top_logprobs_bound_the_entropy_on_both_sides(logits: list[float], kept: int) -> None:
    shifted = np.asarray(logits) - max(logits)
    logprobs = np.sort(shifted - math.log(np.exp(shifted).sum()))[::-1]
    entropy = -float((np.exp(logprobs) * logprobs).sum())
    top = logprobs[:kept].tolist()
    low, high = entropy_bounds(top, len(logits))
    assert low - 1e-9 <= entropy <= high + 1e-9
    assert entropy_bounds(top, None)[1] >= high - 1e-9


def test_a_uniform_distribution_is_seen_as_garbage_by_five_logprobs() -> None:
    top = tuple((number, -math.log(VOCABULARY)) for number in range(5))
    findings = watch(*[token._replace(top=top, top1=token.id) for token in plain(16)])
    assert names(findings) == ["entropy_garbage", "low_margin"]
    assert findings[0].value == pytest.approx(1.0)


def test_a_certain_distribution_is_seen_as_collapse_by_two_logprobs_only_with_a_vocabulary() -> None:
    tokens = [token._replace(top=((token.id, -1e-9), (2000, -21.0))) for token in plain(16)]
    assert names(watch(*tokens)) == ["entropy_collapse"]
    # Without one, what is left might be spread over any number of tokens.
    tokens = [token._replace(top=((token.id, math.log(0.999999)), (2000, -21.0))) for token in plain(16)]
    assert names(watch(*tokens, vocabulary=None)) == []


def test_the_same_first_choice_in_a_row_is_a_fault_though_what_is_drawn_differs() -> None:
    assert names(watch(*plain(15, top1=7))) == []
    (finding,) = watch(*plain(20, top1=7))
    assert finding == Finding("constant_top1", 15, 16.0, 16.0, "fault")
    mixed = [token._replace(top1=7 + (token.id % 15 == 14)) for token in plain(200)]
    assert watch(*mixed) == ()
    by_top = plain(16, top=((7, -1.0), (8, -2.0), (9, -3.0)))
    assert "constant_top1" in names(watch(*by_top))


def test_a_low_margin_is_a_hint_about_the_first_window_only() -> None:
    near = tuple(token._replace(top=((token.id, -1.0), (token.id + 1, -1.001)), entropy=2.0) for token in plain(16))
    far = tuple(token._replace(top=((token.id, -0.5), (token.id + 1, -3.0)), entropy=2.0) for token in plain(16))
    (finding,) = watch(*near)
    assert (finding.sentinel, finding.place, finding.severity) == ("low_margin", 15, "hint")
    assert finding.value == pytest.approx(math.exp(-1) - math.exp(-1.001))
    assert watch(*far, *near) == ()
    assert watch(*near[:15]) == ()


def test_each_sentinel_speaks_once() -> None:
    findings = watch(*(Token(1, b"\xff", math.nan, entropy=0.0, top1=1) for _ in range(300)))
    assert sorted(names(findings)) == ["bad_number", "invalid_utf8", "repetition"]
    assert [finding.place for finding in findings] == [0, 0, 31]


def test_a_loop_is_reported_with_its_length() -> None:
    findings = watch(*(Token(number % 10, b"a") for number in range(100)))
    assert findings == (Finding("repetition", 39, 40.0, 32.0, "fault"),)


@pytest.mark.parametrize(
    ("finish", "expected"), [("stop", ["invalid_utf8"]), ("length", []), ("cancelled", []), ("error", [])]
)
def test_half_a_character_at_the_end_is_a_fault_only_where_the_model_stopped(finish: Any, expected: list[str]) -> None:
    made = ReplyWatch()
    made.add(Token(1, "€".encode()[:2]))
    assert names(made.close(finish)) == expected
    assert made.close(finish) == ()
    with pytest.raises(SchemeError, match="closed after 1 tokens"):
        made.add(Token(1, b"a"))


def test_an_empty_reply_has_no_findings() -> None:
    assert ReplyWatch().close("stop") == ()


def test_add_returns_only_what_is_new() -> None:
    made = ReplyWatch()
    assert names(made.add(Token(1, b"\xff"))) == ["invalid_utf8"]
    assert made.add(Token(2, b"\xff")) == ()
    assert names(made.findings) == ["invalid_utf8"]
    assert made.tokens == 2


def test_length_caps_are_a_rate_over_many_replies() -> None:
    caps = LengthCaps(Limits(cap_replies=40))
    assert [caps.add("length") for _ in range(9)] == [None] * 9
    finding = caps.add("length")
    assert finding is not None
    assert (finding.sentinel, finding.place) == ("length_cap", "replies")
    assert 0.5 < finding.value < 1
    for _ in range(20):
        caps.add("stop")
    assert caps.add("length") is None
    assert caps.add("cancelled") is None


def test_half_of_the_replies_at_the_cap_is_not_yet_more_than_half() -> None:
    caps = LengthCaps()
    found_any = [caps.add("length" if number % 2 else "stop") for number in range(400)]
    assert not any(found_any)


def test_every_limit_that_cannot_be_is_refused() -> None:
    cases: list[dict[str, Any]] = [{"window": 0}, {"loop_rounds": 2}, {"invalid_places": -1}, {"margin": 1.5}]
    cases += [{"entropy_floor": math.nan}, {"constant_spread": -1.0}, {"cap_share": math.nan}, {"top1_run": 0}]
    for case in cases:
        with pytest.raises(SchemeError, match=r"must be|lie between"):
            Limits(**case)
    with pytest.raises(SchemeError, match="2 tokens or more"):
        ReplyWatch(vocabulary=1)


def test_ignored_sentinels_are_silent() -> None:
    tokens = [Token(1, b"\xff", math.nan) for _ in range(40)]
    assert names(watch(*tokens, limits=Limits(ignored=("repetition",)))) == ["invalid_utf8", "bad_number"]
    silent = Limits(cap_replies=1, ignored=("length_cap", "bad_number"))
    caps = LengthCaps(silent)
    assert [caps.add("length") for _ in range(9)] == [None] * 9
    assert judge_tensors({"y": np.asarray([np.nan])}, limits=silent) == ()
    with pytest.raises(SchemeError, match="no sentinel 'loops'; there are bad_number, "):
        Limits(ignored=("loops",))


def test_severities_come_from_the_table() -> None:
    assert {found(name, 0, 0, 0).severity for name in SENTINELS} == {"fault", "hint"}
    assert not has_fault((found("low_margin", 0, 0, 0),))
    assert has_fault((found("low_margin", 0, 0, 0), found("repetition", 0, 0, 0)))


@pytest.mark.parametrize("name", SENTINELS)
def test_every_sentinel_is_explained(name: str) -> None:
    assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8")

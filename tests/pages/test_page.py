"""The page as text: well-formed, escaped, complete in itself, for every Card that can be read."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tersor.core.card import Artefact, Card
from tersor.core.errors import SchemeError
from tersor.core.evaluation import HELD_OUT, Benchmark, Evaluation, Histogram, LayerError, Metric
from tersor.core.plan import PLAN_SCHEMA, Plan, PlannedTensor
from tersor.pages import labels_of, measured, report_page, unlike

from .synthetic import hostile, make_card

CLOSING_THEMSELVES = {"meta", "br", "hr"}
CARD = make_card(blocks=4)


class Outline(HTMLParser):
    """Checks that every element is closed, and collects what the page holds."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in CLOSING_THEMSELVES:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</title></style></svg><b>",
        "&lt;b&gt; &amp;",
        "javascript:alert(1)",
        "--><!--",
        "]]>",
        "{{7*7}}",
    ],
)
def test_no_name_becomes_markup(name: str) -> None:
    reference, found = (Outline(report_page([hostile(text)])) for text in ("harmless", name))
    assert found.tags == reference.tags
    assert [(tag, key) for tag, key, _ in found.attributes] == [(tag, key) for tag, key, _ in reference.attributes]
    assert sum(name in text for text in found.text) > 50
    assert all(value.startswith("#") for value in found.values("href"))


def test_what_no_document_may_hold_is_replaced() -> None:
    page = report_page([hostile("a\x00\x1b[31m\ud800\u202egnp.exe")])
    assert "a\ufffd\ufffd[31m\ufffd\ufffdgnp.exe" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", page)
    page.encode("utf-8")


@pytest.mark.parametrize("cards", [[CARD], [make_card(name, blocks=3) for name in ("q8_0", "q4_k", "q4_k")]])
def test_the_page_is_complete_in_itself(cards: list[Card]) -> None:
    page = report_page(cards)
    found = Outline(page)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "image", "use"} & set(found.tags)
    assert not {"src", "srcset", "style", "action", "xlink:href"} & {name for _, name, _ in found.attributes}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert re.findall(r"https?:|url\(|@import", page) == []
    policy = next(value for value in found.values("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert found.tags.count("script") == found.tags.count("style") == 1


@pytest.mark.parametrize("cards", [[CARD], [make_card(name, blocks=3) for name in ("q8_0", "q4_k")]])
def test_whoever_does_not_see_the_page_can_follow_it(cards: list[Card]) -> None:
    found = Outline(report_page(cards))
    assert ("html", "lang", "en") in found.attributes
    assert [found.tags.count(tag) for tag in ("main", "header", "footer", "nav", "h1")] == [1] * 5
    assert found.tags.count("table") == found.tags.count("caption") > 5
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "href"):
        assert {part.removeprefix("#") for value in found.values(name) for part in value.split()} <= set(ids)
    levels = [int(tag[1]) for tag in found.tags if re.fullmatch("h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    charts = sum(tag == "svg" for tag in found.tags)
    assert sum(tag == "svg" and name == "role" for tag, name, _ in found.attributes) == charts


def test_a_verdict_is_never_told_by_colour_alone() -> None:
    page = report_page([CARD])
    for outcome, word in (("pass", "✓ pass"), ("inconclusive", "? inconclusive")):
        assert f'<span class="badge {outcome}">{word}</span>' in page
    assert "About 410 units would settle it." in page
    assert '<span class="badge fail">✗ faults found</span>' in page


def test_several_artefacts_are_told_apart() -> None:
    cards = [make_card(name, blocks=3) for name in ("q8_0", "q4_k")]
    assert labels_of(cards) == ["q8_0_m", "q4_k_m"]
    assert labels_of([cards[0], replace(cards[0], artefacts=cards[1].artefacts)]) == ["smollm-q8_0", "smollm-q4_k"]
    assert labels_of([cards[0]] * 2) == ["1: q8_0_m", "2: q8_0_m"]
    page = report_page(cards)
    assert "Size against KL divergence" in page
    assert "Not the same measurement everywhere" not in page
    assert "No text in common" not in page
    for change in ({"reference": "another"}, {"settings": {"windows": 4}}):
        other = replace(cards[1], evaluations=(replace(cards[1].evaluations[0], **change),))
        assert "Not the same measurement everywhere" in report_page([cards[0], other])


def values(cards: list[Card], name: str = "kl_mean") -> list[float | None]:
    return [None if metric is None else metric.value for metric in measured(cards, name)]


def on(card: Card, **texts: float) -> Card:
    """`card` with no evaluations but those on these texts, each of one divergence."""
    known = card.evaluations[0]
    made = (
        replace(known, data=text, data_sha256=text, metrics=(Metric("kl_mean", divergence),))
        for text, divergence in texts.items()
    )
    return replace(card, evaluations=tuple(made))


def test_only_figures_from_one_text_stand_beside_each_other() -> None:
    one, two, three = (make_card(name, blocks=3) for name in ("q8_0", "q5_k", "q4_k"))
    names = ["a", "b", "c"]
    alike = [on(one, text=0.1, other=0.7), on(two, text=0.2), on(three, text=0.3)]  # the other is later, but of one
    assert values(alike) == [0.1, 0.2, 0.3]
    assert unlike(alike, names) == []
    left = [*alike[:2], on(three, third=0.9)]
    assert values(left) == [0.1, 0.2, None]
    (told,) = unlike(left, names)
    assert told.startswith("No text in common with the others, so left out here: c on third.")
    apart = [on(one, first=0.1), on(two, second=0.2), on(three, third=0.3)]
    assert values(apart) == [None] * 3
    assert "left out here: a on first; b on second; c on third" in unlike(apart, names)[0]
    page = report_page(apart)
    assert "Size against KL divergence" not in page
    assert "No text in common with the others" in page
    assert values(apart[1:2]) == [0.2]  # one Card alone is compared with nothing


def test_what_quantizing_measured_of_its_own_text_is_compared_with_nothing() -> None:
    cards = [make_card(name, blocks=3) for name in ("q8_0", "q4_k")]
    gains = [replace(card, evaluations=(replace(card.evaluations[0], task=HELD_OUT),)) for card in cards]
    assert values(gains) == [None, None]
    assert "Size against KL divergence" not in report_page(gains)
    assert unlike(gains, ["a", "b"]) == []


def test_a_report_on_nothing_is_refused() -> None:
    with pytest.raises(SchemeError, match="a report needs at least one Card"):
        report_page([])


QUICKLY = (Phase.explicit, Phase.reuse, Phase.generate)  # a Card takes minutes to shrink
numbers = st.floats() | st.sampled_from((0.0, 1e-300, 1e300))
counts = st.integers(-(2**62), 2**62) | st.sampled_from((0, 1))
settings_of = st.dictionaries(st.text(), st.text() | st.booleans() | counts | numbers)
metrics = st.builds(
    Metric, name=st.sampled_from(("kl_mean", "kl_p99", "perplexity", "generation_tokens_per_s", "x")), value=numbers,
    unit=..., low=..., high=..., units=counts, floor=..., share=...,
)  # fmt: skip
edges = st.lists(st.floats(allow_nan=False), min_size=1, max_size=6, unique=True).map(sorted).map(tuple)
histograms = edges.flatmap(
    lambda found: st.builds(
        Histogram,
        name=st.just("kl"),
        edges=st.just(found),
        counts=st.tuples(*[st.integers(0, 9)] * (len(found) - 1)),
    )
)
layers = st.builds(LayerError, clipped=..., entering_db=numbers, arriving_db=numbers | st.none(), findings=...)
evaluations = st.builds(
    Evaluation, metrics=st.lists(metrics).map(tuple), histograms=st.lists(histograms, max_size=2).map(tuple),
    settings=settings_of, samples=..., notes=..., seconds=numbers, versions=...,
)  # fmt: skip
benchmarks = st.builds(
    Benchmark,
    machine=st.dictionaries(st.text(), st.text() | counts | numbers),
    settings=settings_of,
    metrics=st.lists(metrics).map(tuple),
    ratios=st.lists(metrics).map(tuple),
)
sizes = st.integers(0, 2**62) | st.integers(0, 9)
tensors = st.builds(
    PlannedTensor, name=st.from_regex(r"blk\.[0-9]{1,6}\.[a-z]", fullmatch=True) | st.text(),
    shape=st.lists(st.integers(0, 99), max_size=4).map(tuple), nbytes=sizes,
)  # fmt: skip
plans = st.builds(Plan, tensors=st.lists(tensors).map(tuple), schema=st.just(PLAN_SCHEMA))
cards = st.builds(
    Card, plan=plans, source_bytes=sizes, errors=..., evaluations=st.lists(evaluations, max_size=2).map(tuple),
    artefacts=st.lists(st.builds(Artefact, nbytes=sizes), max_size=2).map(tuple), notes=..., peak_memory_bytes=sizes,
    layers=st.lists(layers).map(tuple), benchmarks=st.lists(benchmarks, max_size=1).map(tuple),
)  # fmt: skip


@given(cards)
@settings(deadline=None, max_examples=25, phases=QUICKLY, suppress_health_check=list(HealthCheck))
def test_every_card_that_can_be_read_becomes_a_page(card: Card) -> None:
    named = zip(card.plan.tensors, card.errors, strict=False)
    card = replace(card, errors=tuple(replace(error, name=tensor.name) for tensor, error in named))
    read = Card.from_json(card.to_json())
    for several in ([read], [read, read]):
        Outline(report_page(several))
    read.to_markdown()

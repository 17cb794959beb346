"""Comparing streams of logits: the numbers of each token are those of the definition, and logits do not pile up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError, UnsupportedError
from tersor.evaluation.language import streams
from tersor.evaluation.language.comparison import compare, noise
from tersor.evaluation.language.metrics import EDGES, histogram, measure
from tersor.evaluation.language.streams import logits_of, parts, shared_vocabulary
from tersor.evaluation.language.windows import cut
from tersor.evaluation.language.worst import Worst, WorstTokens, samples

VOCABULARY, CONTEXT = 12, 10
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 95).astype(np.int32)
WINDOWS = cut(TOKENS, context=CONTEXT, stride=4)


class Table:
    """A model whose next token depends on the last one alone; `tremble` is what another batch size changes."""

    def __init__(self, seed: int, *, padding: int = 0, tremble: float = 0.0) -> None:
        self.vocabulary_size = VOCABULARY + padding
        self.table = np.random.default_rng(seed).standard_normal((VOCABULARY, self.vocabulary_size), dtype=np.float32)
        self.tremble = tremble

    def slices(self, ids: Sequence[int], *, start: int = 0, rows: int = 512, batch: int = 0) -> Iterator[Float32]:
        for begin in range(start, len(ids), rows):
            values = self.table[list(ids[begin : min(begin + rows, len(ids))])]
            yield values + np.float32(self.tremble if batch else 0) * (np.arange(self.vocabulary_size) == 0)

    def version(self) -> str:
        return "table"


def log_p(model: Table, last: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    row = model.table[last, :VOCABULARY].astype(np.float64)
    normal: np.ndarray[tuple[int], np.dtype[np.float64]] = row - np.log(np.exp(row).sum())
    return normal


@pytest.mark.parametrize("size", [1 << 25, 4 * VOCABULARY * 3])
def test_each_token_has_the_numbers_of_the_definition(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where slices of three rows are all that is held."""
    monkeypatch.setattr(streams, "SLICE_BYTES", size)
    reference, subject = Table(1), Table(2, padding=3)
    seen: list[int] = []
    found, worst = compare(
        WINDOWS,
        logits_of(reference, WINDOWS, VOCABULARY),
        logits_of(subject, WINDOWS, VOCABULARY),
        VOCABULARY,
        context=CONTEXT,
        own={"target": lambda _reference, _subject, targets: targets},
        progress=lambda _stage, done, total: seen.append(total - done),
    )
    assert seen[-1] == 0
    for index, place in enumerate(found.place.tolist()):
        p, q = (log_p(model, int(TOKENS[place - 1])) for model in (reference, subject))
        assert found.divergence[index] == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-5)
        assert found.reference_loss[index] == pytest.approx(-p[TOKENS[place]], rel=1e-5)
        assert found.subject_loss[index] == pytest.approx(-q[TOKENS[place]], rel=1e-5)
        assert found.same_top[index] == (p.argmax() == q.argmax())
        assert found.own["target"][index] == TOKENS[place]
    assert sorted(found.place[found.sliding].tolist()) == list(range(1, len(TOKENS)))
    assert [one.divergence for one in worst] == sorted(found.divergence[found.chunk].tolist(), reverse=True)[:10]


def test_metrics_of_ones_own_must_give_a_number_a_token() -> None:
    table = Table(1)
    with pytest.raises(SchemeError, match=r"metric mine returned shape \(\) for 4 tokens; one number each is due"):
        compare(
            WINDOWS[2:],
            logits_of(table, WINDOWS[2:], VOCABULARY),
            logits_of(table, WINDOWS[2:], VOCABULARY),
            VOCABULARY,
            context=CONTEXT,
            own={"mine": lambda *_: 1.0},
        )


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda *_: 1 // 0, "--metric mine: ZeroDivisionError: integer division"),
        (lambda *_: "no number", "--metric mine: ValueError: could not convert"),
        (lambda _one: 1.0, "--metric mine: TypeError: .* takes 1 positional argument but 3 were given"),
        (7, "--metric mine: TypeError: 'int' object is not callable"),
    ],
)
def test_a_metric_that_fails_is_named(function: Any, told: str) -> None:
    table = Table(1)
    streams_of = (logits_of(table, WINDOWS[2:], VOCABULARY), logits_of(table, WINDOWS[2:], VOCABULARY))
    with pytest.raises(SchemeError, match=told):
        compare(WINDOWS[2:], *streams_of, VOCABULARY, context=CONTEXT, own={"mine": function})


def test_logits_that_are_no_numbers_are_refused() -> None:
    broken = Table(2)
    broken.table[:] = np.nan
    with pytest.raises(FormatError, match="the subject at row 0, token 0 is nan"):
        compare(
            WINDOWS,
            logits_of(Table(1), WINDOWS, VOCABULARY),
            logits_of(broken, WINDOWS, VOCABULARY),
            VOCABULARY,
            context=CONTEXT,
        )


def test_slices_are_let_go_once_they_are_compared() -> None:
    made: list[int] = []
    gone: list[int] = []
    most = []

    def watched(model: Table) -> Iterator[Float32]:
        for values in logits_of(model, WINDOWS, VOCABULARY):
            fresh = values.copy()
            made.append(1)
            weakref.finalize(fresh, gone.append, 1)
            yield fresh
            del fresh, values
            gc.collect()
            most.append(len(made) - len(gone))

    compare(WINDOWS, watched(Table(1)), watched(Table(2)), VOCABULARY, context=CONTEXT)
    assert len(WINDOWS) > 20
    assert max(most) <= 4


def test_the_noise_floor_is_that_of_another_batch_size() -> None:
    windows = WINDOWS[2:6]
    assert noise(Table(1), windows, VOCABULARY, context=CONTEXT).divergence.max() == 0
    model = Table(1, tremble=0.1)
    found = noise(model, windows, VOCABULARY, context=CONTEXT)
    p = log_p(model, int(TOKENS[found.place[0] - 1]))
    q = p + 0.1 * (np.arange(VOCABULARY) == 0)
    q -= np.log(np.exp(q).sum())
    assert found.divergence[0] == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-3)


def test_metrics_carry_the_noise_floor_and_an_interval() -> None:
    arguments = (WINDOWS, logits_of(Table(1), WINDOWS, VOCABULARY), logits_of(Table(2), WINDOWS, VOCABULARY))
    found, _ = compare(*arguments, VOCABULARY, context=CONTEXT)
    metrics = {
        one.name: one for one in measure(found, noise(Table(1, tremble=0.1), WINDOWS, VOCABULARY, context=CONTEXT))
    }
    floor = metrics["kl_mean"].floor
    assert floor is not None
    assert 0 < floor < 0.01
    assert metrics["perplexity"].floor is None
    assert metrics["top1_agreement"].floor is not None
    for name in ("perplexity", "perplexity_sliding", "kl_mean", "top1_agreement", "rms_delta_p"):
        low, high = metrics[name].low, metrics[name].high
        assert low is not None
        assert high is not None
        assert low < metrics[name].value < high
    assert metrics["kl_mean"].units == len(TOKENS) // CONTEXT
    assert metrics["kl_max"].low is None
    ratio = metrics["perplexity"].value / metrics["reference_perplexity"].value
    assert metrics["perplexity_ratio"].value == pytest.approx(ratio)
    counted = histogram(found)
    assert counted.edges == EDGES
    assert sum(counted.counts) == int(found.chunk.sum())


def test_padded_vocabularies_are_shared_and_other_ones_refused() -> None:
    assert shared_vocabulary(300, 320) == 300
    with pytest.raises(UnsupportedError, match="a vocabulary of 50000 tokens, the artefact of 32000: other models"):
        shared_vocabulary(50_000, 32_000)


def test_parts_follow_the_slices() -> None:
    assert [len(targets) for _, _, targets in parts(WINDOWS, 4)][:4] == [4, 4, 1, 4]


def test_the_worst_tokens_are_kept_with_what_was_expected() -> None:
    worst = WorstTokens()
    values = np.random.default_rng(0).random(50)
    for start in range(0, 50, 7):
        part = values[start : start + 7]
        for index in worst.candidates(part, counted=np.arange(len(part)) != 3):
            worst.add(float(part[index]), start + index, ((1, 0.5),), ((2, 0.25),))
    allowed = [value for place, value in enumerate(values.tolist()) if place % 7 != 3]
    assert [one.divergence for one in worst.sorted()] == sorted(allowed, reverse=True)[:10]


def test_samples_show_the_token_in_its_text() -> None:
    def text(ids: Sequence[int]) -> str:
        """A tokenizer that drops the first space, as SentencePiece does."""
        return "".join(" abcdefghijkl"[token] for token in ids).removeprefix(" ")

    tokens = np.array([3, 0, 4, 5, 0, 1], np.int32)
    (sample,) = samples([Worst(0.5, 1, ((0, 0.75),), ((4, 0.5), (0, 0.25)))], tokens, text, ("reference", "artefact"))
    assert (sample.before, sample.text, sample.after, sample.value) == ("c", " ", "de a", 0.5)
    assert sample.detail == "reference: ' ' 75%; artefact: 'd' 50%, ' ' 25%"

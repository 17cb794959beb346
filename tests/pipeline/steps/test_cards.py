"""The Card beside an artefact: its three forms appear together, and what is measured later finds its place in it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.core.card import Artefact, Card, Seconds
from tersor.core.errors import FormatError, MissingError
from tersor.core.evaluation import Benchmark, Evaluation, LayerError, Metric
from tersor.core.plan import Plan, Recipe
from tersor.files.atomic import atomic_writer
from tersor.pipeline.steps import cards
from tersor.pipeline.steps.cards import add, load_card, read_card, save_card

DIGEST = hashlib.sha256(b"model").hexdigest()
PLAN = Plan("m", "llama", Recipe("q8_0", "t"), ())
CARD = Card("m", PLAN, {}, 10, (Artefact("m.gguf", 5, DIGEST),), (), Seconds(), None, {}, "Linux", "tersor quantize m")
EVALUATION = Evaluation("language", "m.gguf", DIGEST, "m", "text.txt", "12", {}, {}, (Metric("kl_mean", 0.5, "nats"),))
BENCHMARK = Benchmark("m.gguf", DIGEST, "f16.gguf", "llama.cpp", {}, {"threads": 2}, (Metric("load_s", 1.0, "s"),))


def test_a_card_appears_in_all_its_forms(tmp_path: Path) -> None:
    written = save_card(CARD, tmp_path / "m.gguf")
    assert [path.name for path in written] == ["m.card.json", "m.card.md", "m.card.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.card.html", "m.card.json", "m.card.md"]
    assert read_card(tmp_path / "m.gguf") == CARD
    assert read_card(tmp_path / "m-00002-of-00003.gguf") == CARD
    assert written[1].read_text(encoding="utf-8") == CARD.to_markdown()
    assert written[2].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A file of some bytes with its Card."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"model")
    save_card(CARD, path)
    return path


def test_a_name_that_is_no_unicode_does_not_lose_the_card(tmp_path: Path) -> None:
    card = replace(CARD, name="caf\udce9")
    save_card(card, tmp_path / "m.gguf")
    assert read_card(tmp_path / "m.gguf") == card


def test_what_is_measured_later_is_added(artefact: Path) -> None:
    rows = (LayerError("blk.0", "block", 0, 20.0, 0.99, 1.0),)
    assert add(artefact, evaluation=EVALUATION) == replace(CARD, evaluations=(EVALUATION,))
    add(artefact, benchmark=BENCHMARK)
    full = add(artefact, layers=rows)
    assert full == replace(CARD, evaluations=(EVALUATION,), benchmarks=(BENCHMARK,), layers=rows)
    assert read_card(artefact) == full
    for suffix in ("md", "html"):
        page = artefact.with_name(f"m.card.{suffix}").read_text(encoding="utf-8")
        assert "0.5000" in page
        assert "blk.0" in page


def test_a_later_measurement_of_the_same_replaces_the_earlier(artefact: Path) -> None:
    again = replace(EVALUATION, metrics=(Metric("kl_mean", 0.25, "nats"),), seconds=2.0)
    others = [
        replace(EVALUATION, data_sha256="34"),
        replace(EVALUATION, task="choice"),
        replace(EVALUATION, reference="n"),
    ]
    for evaluation in (EVALUATION, *others, again):
        card = add(artefact, evaluation=evaluation)
    assert card is not None
    assert card.evaluations == (*others, again)
    alone, faster = replace(BENCHMARK, against=""), replace(BENCHMARK, metrics=(Metric("load_s", 0.5, "s"),))
    for benchmark in (BENCHMARK, alone, faster):
        card = add(artefact, benchmark=benchmark)
    assert card is not None
    assert card.benchmarks == (alone, faster)


def test_without_a_card_nothing_is_written(tmp_path: Path) -> None:
    assert read_card(tmp_path / "m.gguf") is None
    assert add(tmp_path / "m.gguf", evaluation=EVALUATION) is None
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_another_file_stays_as_it_is(artefact: Path, caplog: pytest.LogCaptureFixture) -> None:
    artefact.write_bytes(b"other")
    rows = (LayerError("blk.0", "block", 0, 20.0, 0.99, 1.0),)
    with caplog.at_level(logging.WARNING):
        assert add(artefact, evaluation=replace(EVALUATION, subject_sha256="cd")) is None
        assert add(artefact, benchmark=replace(BENCHMARK, subject_sha256="cd")) is None
        assert add(artefact, layers=rows) is None
    assert read_card(artefact) == CARD
    assert len(caplog.messages) == 3
    for message in caplog.messages:
        assert "m.card.json is of another file than m.gguf" in message
        assert "what was measured is not added to it" in message


def test_two_runs_that_add_at_once_do_not_lose_what_the_other_found(artefact: Path) -> None:
    with atomic_writer(artefact.with_name("m.card.json")) as other:
        with pytest.raises(FormatError, match="another run is writing this file"):
            add(artefact, evaluation=EVALUATION)
        other.write(replace(CARD, benchmarks=(BENCHMARK,)).to_json().encode())
    card = add(artefact, evaluation=EVALUATION)
    assert card is not None
    assert (card.evaluations, card.benchmarks) == ((EVALUATION,), (BENCHMARK,))


def test_a_broken_card_is_named_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.card.json"
    for content, message in (
        (b"{", r"m\.card\.json: not a JSON document"),
        (b"\xff", r"m\.card\.json: not a text file"),
        (json.dumps({"schema": "tersor.card/7"}).encode(), r"m\.card\.json: schema 'tersor\.card/7'"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message):
            read_card(tmp_path / "m.gguf")
        with pytest.raises(FormatError, match=message):
            add(tmp_path / "m.gguf", evaluation=EVALUATION)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]
    monkeypatch.setattr(cards, "MAX_BYTES", 10)
    with pytest.raises(FormatError, match=r"more than 10 bytes; no Card is that large"):
        read_card(tmp_path / "m.gguf")
    with pytest.raises(MissingError, match=r"none\.card\.json: cannot be read \(No such file"):
        load_card(tmp_path / "none.card.json")

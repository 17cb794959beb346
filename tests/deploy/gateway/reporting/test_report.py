"""A report from files alone: what it says, what it says nothing of, and what it does with files that are none."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
from pathlib import Path

import pytest

from tersor.core.errors import MissingError, SchemeError
from tersor.deploy.config import read_deployment
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.store import Store
from tersor.deploy.gateway.reporting.figures import FIGURES, Compared, Value
from tersor.deploy.gateway.reporting.incidents import causes_of
from tersor.deploy.gateway.reporting.rendering import markdown, page
from tersor.deploy.gateway.reporting.report import Beside, DeploymentReport, Window, deployment_report
from tersor.deploy.gateway.reporting.sections import figure_table
from tersor.deploy.registry.registry import Registry
from tersor.deploy.rollout.decision import replayed
from tersor.pipeline.deploy.report import report_on, save

from .synthetic import NOW, YAML, deployed, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    served(made)
    return made


@pytest.fixture(scope="module")
def report(folder: Path) -> DeploymentReport:
    return deployment_report(read_deployment(folder / "deploy.yaml"), "deploy.yaml", NOW)


def test_figures_stand_beside_full_precision_in_three_windows(report: DeploymentReport) -> None:
    chat, alone = report.models
    assert [one.name for one in chat.windows] == ["the last hour", "today, UTC", "since 2027-01-12"]
    for window in chat.windows:
        (beside,) = window.variants  # nobody asked the candidate
        rows = {one.figure.name: one for one in beside.figures}
        assert rows["latency_p50_s"].reading == "better"
        agreement = rows["agreement"].ours
        assert agreement is not None
        assert agreement.low is not None
        assert agreement.low < 0.98 < (agreement.high or 0)
        assert rows["accuracy"].ours is None
    hour, _, whole = chat.windows
    assert hour.variants[0].figures[0].ours is not None
    assert whole.variants[0].figures[0].ours is not None
    assert whole.variants[0].figures[0].ours.of > 3 * hour.variants[0].figures[0].ours.of
    assert 2.9 * 86_400 < whole.seconds < 3.1 * 86_400
    assert not alone.fallback
    assert all(one.ours is None for one in alone.windows[0].variants[0].figures)


def test_incidents_have_their_length_and_their_remedy(report: DeploymentReport) -> None:
    chat, alone = report.models
    assert alone.incidents == ()
    found = {one.what: one for one in chat.incidents}
    assert (found["HighFallbackShare"].seconds, found["breaker open"].seconds) == (600.0, 30.0)
    assert (found["SlowAnswers"].seconds, found["SlowAnswers"].ended) == (900.0, None)
    assert "signal 9" in found["engine restarted"].told
    assert "tersor calibrate" in found["refresh wanted"].told
    assert found["SlowAnswers"].remedy
    assert [one["alert"] for one in chat.pending] == ["LowAgreement"]
    assert [(run.was_cut, run.ended) for run in report.runs] == [(False, None), (True, None)]
    assert {(one.kind, one.why, one.count) for one in chat.causes} == {
        ("fallbacks", "fault", 7),
        ("findings", "loop", 7),
    }


def test_decisions_are_made_again_and_one_that_was_changed_is_named(report: DeploymentReport, folder: Path) -> None:
    (decision,) = report.models[0].decisions
    assert (decision.action, decision.again) == ("PROMOTE_STEP", "")
    assert decision.standings["agreement"].verdict == "safe"
    path = folder / "deploy.rollouts.json"
    whole = path.read_text()
    try:
        path.write_text(re.sub(r'"action":\s*"PROMOTE_STEP"', '"action": "PAUSE"', whole))
        other = deployment_report(read_deployment(folder / "deploy.yaml"), "x", NOW)
    finally:
        path.write_text(whole)
    assert "decided again" in other.models[0].decisions[0].again
    assert "0 of 1 came out the same" in markdown(other)


def test_a_decision_is_decided_again_from_the_file_as_the_how_to_says(folder: Path) -> None:
    rollouts = json.loads((folder / "deploy.rollouts.json").read_text())["models"]
    (row,) = rollouts["chat"]["decisions"]
    assert replayed(row["decision"]).reason == "agreement safe after 600 samples"


def test_a_record_of_minutes_has_one_window(tmp_path: Path) -> None:
    store, recorder = Store(tmp_path / "deploy.record.db"), Recorder(lambda: NOW - 60)
    recorder.answered("chat", "q8", 0.1, 0.2)
    recorder.answered("chat", "q4", 0.1, 0.2)
    store.save(recorder)
    store.close()
    (window,) = deployment_report(read_deployment(deployed(tmp_path)), "x", NOW).models[0].windows
    assert [(one.variant, one.role) for one in window.variants] == [("q8", "primary"), ("q4", "candidate")]
    assert window.seconds == 60


def test_a_record_without_a_minute_that_lasts_begins_where_it_was_first_counted(tmp_path: Path) -> None:
    clock = [NOW - 7200]
    store, recorder = Store(tmp_path / "deploy.record.db"), Recorder(lambda: clock[0])
    for _ in range(3):
        recorder.answered("chat", "q8", 0.1, 0.2)
        clock[0] += 600
    store.save(recorder)
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "deploy.record.db")) as connection, connection:
        connection.execute("DELETE FROM cells WHERE kind = 'now'")
    report = deployment_report(read_deployment(deployed(tmp_path)), "x", NOW)
    assert report.since == "2027-01-15T00:00:00.000000Z"  # nothing happened that says more than the day
    today = report.models[0].windows[-1]
    assert today.name == "today, UTC"
    assert [(one.variant, one.figures[0].ours.of) for one in today.variants if one.figures[0].ours] == [("q8", 2)]


def test_causes_are_those_of_the_day_that_a_report_begins_with_and_later() -> None:
    causes = {day: {"chat": {"fallbacks": {"fault": day[-1:].count("5") + 1}}} for day in ("2027-01-14", "2027-01-15")}
    told = causes_of("chat", {**causes, "2027-01-13": {"other": {"fallbacks": {"fault": 9}}}}, "2027-01-14T23:00:00Z")
    assert [(one.day, one.count) for one in told] == [("2027-01-15", 2), ("2027-01-14", 1)]
    assert [one.day for one in causes_of("chat", causes, "2027-01-15T00:00:00Z")] == ["2027-01-15"]


def test_the_example_in_the_documentation_has_what_reports_have_now(report: DeploymentReport) -> None:
    example = (Path(__file__).parents[4] / "docs" / "how-to" / "report-example.md").read_text(encoding="utf-8")
    wanted = [line for line in markdown(report).split("\n## alone")[0].splitlines() if line.startswith("### ")]
    assert [line for line in example.splitlines() if line.startswith("### ")] == wanted, "tools/make_report_example.py"
    assert [one.title for one in FIGURES if f"| {one.title}" not in example] == [], "tools/make_report_example.py"


def test_markdown_html_and_json_say_the_same(report: DeploymentReport, folder: Path) -> None:
    text, html, document = markdown(report), page(report), json.loads(json.dumps(report.to_object()))
    for word in ("HighFallbackShare", "no labels came", "night shift", "1 of 1 came out the same",
                 "killed, or without power", "the last hour", "agreement with full precision"):  # fmt: skip
        assert word in text, word
        assert word in html, word
    assert document["models"][0]["windows"][0]["variants"][0]["figures"][0]["name"] == "latency_p50_s"
    assert {len(line.split(" | ")) for line in text.splitlines() if line.startswith("| latency,")} == {4, 2}
    assert "<script" in html  # ours, by its hash
    for form in ("html", "md", "json"):
        save(report, folder / f"r.{form}")
        assert (folder / f"r.{form}").stat().st_size > 3000


def test_a_range_says_its_unit_once_where_both_ends_have_it() -> None:
    latency = next(one for one in FIGURES if one.name == "latency_p95_s")
    for low, high, wanted in ((0.2, 0.3, "200 … 300 ms"), (0.8, 1.5, "800 ms … 1.5 s"), (0.2, math.inf, "200 ms … ∞")):
        row = Compared(latency, Value(low, low, high, 7), None, None)
        made = figure_table(Window("w", "", 60.0, ()), Beside("q", "primary", (row,)), "").rows[0][1]
        assert made.partition("\n")[2] == f"{wanted}, of 7"


def test_days_cut_what_came_before(report: DeploymentReport, folder: Path) -> None:
    short = deployment_report(read_deployment(folder / "deploy.yaml"), "x", NOW, days=1)
    assert [one.name for one in short.models[0].windows] == ["the last hour", "today, UTC"]
    assert short.since == "2027-01-15T00:00:00.000000Z"
    assert short.models[0].decisions == ()
    assert report.models[0].decisions
    with pytest.raises(SchemeError, match="above 0"):
        deployment_report(read_deployment(folder / "deploy.yaml"), "x", NOW, days=0)


def test_nothing_served_yet_is_said_plainly(tmp_path: Path) -> None:
    text = markdown(report_on(deployed(tmp_path)))
    assert "Not read: deploy.record.db: there is no record" in text
    assert "not measured (no request was answered)" in text
    assert "No candidate was tried" in text


def test_damaged_files_cost_their_part_alone(tmp_path: Path) -> None:
    place = served(tmp_path)
    (tmp_path / "deploy.rollouts.json").write_text("[]")
    (tmp_path / "deploy.record.db").write_bytes(b"no database" * 200)
    for name in ("deploy.record.db-wal", "deploy.record.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    made = deployment_report(read_deployment(place), "x", NOW)
    assert len(made.problems) == 2
    assert all(any(name in one for one in made.problems) for name in ("rollouts.json", "record.db"))
    assert made.models[0].events[0].why == "night shift"
    assert page(made)


@pytest.mark.parametrize("odd", ["<script>alert(1)</script>", "a|b\n# c", "](javascript:x)", "\u202eabc"])
def test_texts_of_others_mark_nothing_up(tmp_path: Path, odd: str) -> None:
    place = served(tmp_path)
    with (tmp_path / "deploy.audit.jsonl").open("a") as file:
        row = {"at": "2027-01-15T07:59:00.000000Z", "who": odd, "origin": odd, "what": "rollback", "subject": "chat"}
        file.write(json.dumps({**row, "result": "done", "reason": odd}) + "\n")
    made = deployment_report(read_deployment(place), odd, NOW)
    assert made.models[0].events[0].why
    text, html = markdown(made), page(made)
    assert "<script>alert" not in html + text
    assert "\n# c" not in text
    assert re.search(r"(?<!\\)\]\(", text) is None
    assert "\u202e" not in text + html


def test_a_name_of_a_registry_finds_the_deployment_that_names_it(tmp_path: Path) -> None:
    place = deployed(tmp_path, "registry: .\n" + YAML)
    with Registry.open(tmp_path, mode="create") as opened:
        for name in ("full", "q8"):
            (tmp_path / f"{name}.gguf").write_bytes(f"GGUF {name}".encode())
            opened.add_artefact(name, tmp_path / f"{name}.gguf", who="ann", baseline="full" if name == "q8" else None,
                                kind="torch")  # fmt: skip
        opened.record_verdict("q8", "pass", {"kl_mean": 0.01}, who="gate")
        opened.deploy("chat", "q8", who="ann", why="first")
        opened.deploy("gone", "full", who="ann")
    made = report_on("chat", registry=tmp_path)
    (model,) = made.models
    assert (model.served[0].artefact, model.served[0].why, model.gates[0].outcome) == ("q8:1", "first", "pass")
    assert "q8:1" in markdown(made)
    assert report_on(place).models[1].served == ()
    for name, reason in (("none", "nothing ever served"), ("gone", "no deployment beside")):
        with pytest.raises(MissingError, match=reason):
            report_on(name, registry=tmp_path)
    with pytest.raises(MissingError, match="--registry"):
        report_on("chat")
    with pytest.raises(MissingError, match="no such deployment"):
        report_on(tmp_path / "none.yaml", registry=tmp_path)

"""What a registry remembers, and what it refuses."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path

import pytest

from tersor.core.errors import FormatError, MissingError, QualityError, SchemeError
from tersor.deploy.registry.manifest import contents_of
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Deployment, Note

from .conftest import Clock

TABLES = ("artefacts", "verdicts", "overrides", "transitions", "events")


def passed(registry: Registry, *names: str) -> None:
    for name in names:
        registry.record_verdict(name, "pass", {"kl_mean": 0.001}, who="gate")


def serving(registry: Registry, name: str = "chat") -> Deployment:
    found = registry.serving(name)
    assert found is not None
    return found


def test_an_artefact_gets_the_next_version_and_keeps_every_one(registry: Registry, folder: Path, clock: Clock) -> None:
    first = registry.artefact("q4")
    assert (first.label, first.kind, first.path, first.baseline) == ("q4:1", "gguf", "q4.gguf", "full:1")
    assert (first.nbytes, first.added, first.who) == (204, "2027-01-02T03:04:05.000000Z", "ann")
    (folder / "q4.gguf").write_bytes(b"GGUF another")
    second = registry.add_artefact("q4", folder / "q4.gguf", who="bob", baseline="full")
    assert (second.version, second.who) == (2, "bob")
    assert registry.artefact("q4") == registry.artefact("q4:2") == registry.artefact("q4", 2) == second
    assert registry.artefact("q4", 1) == first
    assert [row.label for row in registry.artefacts()] == ["full:1", "q4:1", "q8:1", "q4:2"]


def test_adding_what_is_there_changes_nothing_but_another_baseline_does(registry: Registry, folder: Path) -> None:
    before = registry.events()
    assert registry.add_artefact("q4", folder / "q4.gguf", who="bob", baseline="full").version == 1
    assert registry.events() == before
    assert registry.add_artefact("q4", folder / "q4.gguf", who="bob").version == 2


def test_an_unknown_artefact_is_refused_with_those_that_there_are(registry: Registry) -> None:
    with pytest.raises(MissingError, match="no artefact q5; there are q8:1, q4:1, full:1"):
        registry.artefact("q5")
    with pytest.raises(MissingError, match="no artefact q4:7"):
        registry.artefact("q4", 7)
    with pytest.raises(SchemeError, match="one of them"):
        registry.artefact("q4:1", 2)


def test_a_baseline_is_of_full_precision_and_so_is_a_fallback(registry: Registry, folder: Path) -> None:
    with pytest.raises(SchemeError, match="q4:1 has a baseline itself, full:1"):
        registry.add_artefact("q2", folder / "q4.gguf", who="ann", baseline="q4")
    with pytest.raises(MissingError, match="no artefact f32"):
        registry.add_artefact("q2", folder / "q4.gguf", who="ann", baseline="f32")
    passed(registry, "q4")
    with pytest.raises(SchemeError, match="no fallback of full precision"):
        registry.deploy("chat", "q4", "q8", who="ann")


def test_what_has_not_passed_its_gate_may_not_serve(registry: Registry) -> None:
    with pytest.raises(QualityError, match=r"q4:1 may not serve: no gate has compared it with full:1 yet"):
        registry.deploy("chat", "q4", who="ann")
    registry.record_verdict("q4", "inconclusive", {}, who="gate")
    with pytest.raises(QualityError, match=r"its gate was inconclusive on 2027-01-02T03:04:05.000000Z \(gate\)"):
        registry.deploy("chat", "q4", who="ann")
    registry.record_verdict("q4", "fail", {"kl_mean": 9.5}, who="gate")
    with pytest.raises(QualityError, match="it failed its gate"):
        registry.deploy("chat", "q4", who="ann")
    assert registry.serving("chat") is None
    passed(registry, "q4")
    assert registry.deploy("chat", "q4", who="ann").artefact == "q4:1"
    assert [verdict.outcome for verdict in registry.verdicts("q4")] == ["inconclusive", "fail", "pass"]
    assert registry.verdicts("q4")[1].document == {"kl_mean": 9.5}


def test_full_precision_needs_no_gate_unless_one_found_against_it(registry: Registry) -> None:
    assert registry.deploy("chat", "full", who="ann").fallback is None
    registry.record_verdict("full", "fail", {}, who="gate")
    with pytest.raises(QualityError, match="full:1 may not serve"):
        registry.deploy("other", "full", who="ann")


def test_an_override_holds_for_one_verdict_and_not_for_the_next(registry: Registry) -> None:
    given = registry.override("q4", who="bob", why="the gate is down")
    assert (given.artefact, given.verdict, given.who, given.why) == ("q4:1", None, "bob", "the gate is down")
    assert registry.objection("q4") is None
    registry.record_verdict("q4", "fail", {}, who="gate")
    assert "failed" in str(registry.objection("q4"))
    again = registry.override("q4", who="bob", why="a false alarm")
    assert again.verdict == registry.verdicts("q4")[-1].id
    assert registry.objection("q4") is None
    registry.record_verdict("q4", "fail", {}, who="gate")
    assert registry.objection("q4") is not None
    assert registry.objection("q8") is not None  # an override is for one artefact
    assert registry.overrides("q4") == (given, again)


def test_an_override_that_is_not_needed_or_not_explained_is_refused(registry: Registry) -> None:
    with pytest.raises(SchemeError, match="full:1 may serve as it is"):
        registry.override("full", who="bob", why="to be safe")
    with pytest.raises(SchemeError, match="why: 1 to 2000 printable characters"):
        registry.override("q4", who="bob", why="  ")
    assert registry.overrides("q4") == ()


def test_the_fallback_is_the_baseline_unless_another_is_named(registry: Registry, folder: Path) -> None:
    passed(registry, "q4")
    registry.add_artefact("full16", folder / "full.gguf", who="ann")
    assert registry.deploy("chat", "q4", who="ann").fallback == "full:1"
    assert registry.deploy("chat", "q4", "full16", who="ann").fallback == "full16:1"
    assert registry.rollback("chat", who="ann").fallback == "full:1"


def test_rollback_goes_back_step_by_step_and_never_forth(registry: Registry, clock: Clock) -> None:
    passed(registry, "q4", "q8")
    for name in ("full", "q8", "q4"):
        registry.deploy("chat", name, who="ann")
        clock.advance(60)
    assert registry.rollback("chat", who="bob", why="it garbles").artefact == "q8:1"
    assert registry.rollback("chat", who="bob").artefact == "full:1"
    with pytest.raises(SchemeError, match="nothing served before full:1"):
        registry.rollback("chat", who="bob")
    found = [(row.deployment.artefact, row.deployment.action, row.seconds) for row in registry.history("chat")]
    assert found == [
        ("full:1", "deploy", 60), ("q8:1", "deploy", 60), ("q4:1", "deploy", 60), ("q8:1", "rollback", 0),
        ("full:1", "rollback", None),
    ]  # fmt: skip
    assert registry.history("chat")[3].deployment.why == "it garbles"


def test_a_repeated_rollback_goes_back_once_where_it_says_what_it_leaves(registry: Registry) -> None:
    passed(registry, "q4", "q8")
    for name in ("full", "q8", "q4"):
        registry.deploy("chat", name, who="ann")
    assert registry.rollback("chat", who="bob", leaving="q4").artefact == "q8:1"
    with pytest.raises(SchemeError, match="q4:1 is not what serves, q8:1 is"):
        registry.rollback("chat", who="bob", leaving="q4")
    assert serving(registry).artefact == "q8:1"


def test_a_rollback_to_what_stands_by_is_remembered_until_something_is_deployed(registry: Registry) -> None:
    passed(registry, "q4", "q8")
    assert registry.rolled_back_from("chat") is None
    registry.deploy("chat", "q8", who="ann")
    registry.deploy("chat", "q4", who="ann")
    first = registry.rollback("chat", to="full", who="bob", why="garbage")
    assert (first.action, first.artefact, first.fallback, first.why) == ("rollback", "full:1", None, "garbage")
    assert registry.rollback("chat", to="full", who="eve") == first
    assert registry.rolled_back_from("chat") == "q4:1"
    registry.undeploy("chat", who="ann")
    assert registry.rolled_back_from("chat") == "q4:1"  # stopped, and still rolled back
    registry.rollback("chat", to="full", who="bob")
    assert registry.rolled_back_from("chat") == "q4:1"
    registry.deploy("chat", "q4", who="ann")
    assert registry.rolled_back_from("chat") is None
    registry.rollback("chat", to="full", who="bob")
    assert registry.rollback("chat", who="bob").artefact == "q8:1"  # further back, never to what was left
    with pytest.raises(SchemeError, match="nothing was ever deployed"):
        registry.rollback("other", to="full", who="bob")


def test_an_artefact_is_known_by_its_contents_wherever_they_lie(registry: Registry, folder: Path) -> None:
    copy = folder.parent / "another.gguf"
    copy.write_bytes((folder / "q4.gguf").read_bytes())
    found = registry.registered(contents_of(copy))
    assert found is not None
    assert found.label == "q4:1"
    registry.add_artefact("innocent", folder / "q4.gguf", who="eve")
    assert registry.registered(contents_of(copy)) == found  # the one that a gate has to compare
    copy.write_bytes(copy.read_bytes() + b"x")
    assert registry.registered(contents_of(copy)) is None


def test_what_the_caller_has_hashed_is_not_read_again_and_nothing_need_stand_by(
    registry: Registry, folder: Path
) -> None:
    passed(registry, "q4")
    (folder / "q4.gguf").write_bytes(b"GGUF moved")
    with pytest.raises(FormatError, match="q4:1 may not serve"):
        registry.deploy("chat", "q4", who="ann")
    assert registry.deploy("chat", "q4", "", who="ann", is_hashed=True).fallback is None
    with pytest.raises(QualityError, match="q8:1 may not serve"):
        registry.deploy("chat", "q8", who="ann", is_hashed=True)


def test_deploying_what_serves_changes_nothing(registry: Registry) -> None:
    first = registry.deploy("chat", "full", who="ann")
    events = registry.events()
    assert registry.deploy("chat", "full", who="bob") == first
    assert registry.events() == events


def test_a_canary_is_left_by_rollback_and_promoted_by_deploy(registry: Registry) -> None:
    passed(registry, "q4")
    registry.deploy("chat", "full", who="ann")
    assert registry.shift("chat", "q8", state="shadow", who="ctl").weight == 0  # a shadow needs no verdict
    with pytest.raises(QualityError, match="q8:1 may not serve"):
        registry.shift("chat", "q8", state="canary", weight=0.05, who="ctl")
    for weight in (0.05, 0.25):
        row = registry.shift("chat", "q4", state="canary", weight=weight, who="ctl", why="agreement 0.998")
    assert (row.artefact, row.candidate, row.weight, row.state) == ("full:1", "q4:1", 0.25, "canary")
    assert registry.shift("chat", "q4", state="canary", weight=0.25, who="ctl") == row
    back = registry.rollback("chat", who="ctl", leaving="q4")
    assert (back.artefact, back.candidate, back.weight, back.state) == ("full:1", None, 0, "serving")
    registry.shift("chat", "q4", state="canary", weight=1.0, who="ctl")
    assert registry.deploy("chat", "q4", who="ctl").state == "serving"
    assert registry.rollback("chat", who="ctl").artefact == "full:1"


def test_a_candidate_is_hashed_once_when_it_is_first_tried(registry: Registry, folder: Path) -> None:
    passed(registry, "q4")
    registry.deploy("chat", "full", who="ann")
    good = (folder / "q4.gguf").read_bytes()
    (folder / "q4.gguf").write_bytes(good[::-1])
    with pytest.raises(FormatError, match=r"q4:1 may not serve: q4.gguf: has other content"):
        registry.shift("chat", "q4", state="canary", weight=0.05, who="ctl")
    (folder / "q4.gguf").write_bytes(good)
    registry.shift("chat", "q4", state="canary", weight=0.05, who="ctl")
    (folder / "q4.gguf").write_bytes(good[::-1])
    assert registry.shift("chat", "q4", state="canary", weight=0.25, who="ctl").weight == 0.25


def test_each_transition_says_where_a_rollback_from_it_leads(registry: Registry) -> None:
    passed(registry, "q4", "q8")
    first = registry.deploy("chat", "full", who="ann")
    second = registry.deploy("chat", "q8", who="ann")
    steps = [registry.shift("chat", "q4", state="canary", weight=weight, who="ctl") for weight in (0.05, 0.25)]
    third = registry.deploy("chat", "q4", who="ctl")
    assert [first.before, second.before] == [None, first.id]
    assert {row.before for row in (*steps, third)} == {second.id}
    assert registry.undeploy("chat", who="ann").before == third.id
    assert registry.rollback("chat", who="ann").before == second.id
    assert registry.rollback("chat", who="ann").before == first.id


@pytest.mark.parametrize(
    ("candidate", "state", "weight", "problem"),
    [
        ("q4", "canary", 1.5, "a share of requests is 0 … 1"), ("q4", "canary", -0.1, "a share of requests"),
        ("q4", "canary", float("nan"), "a share of requests"), ("q4", "shadow", 0.5, "0 for a shadow"),
        ("q4", "serving", 0.5, "no state for a candidate"), ("full", "canary", 0.5, "cannot be its own candidate"),
    ],
)  # fmt: skip
def test_a_shift_that_makes_no_sense_is_refused(
    registry: Registry, candidate: str, state: str, weight: float, problem: str
) -> None:
    passed(registry, "q4")
    registry.deploy("chat", "full", who="ann")
    with pytest.raises(SchemeError, match=problem):
        registry.shift("chat", candidate, state=state, weight=weight, who="ctl")  # type: ignore[arg-type]  # on purpose
    assert serving(registry).candidate is None


def test_undeployed_means_nothing_serves_until_a_rollback(registry: Registry) -> None:
    for call in (registry.rollback, registry.undeploy):
        with pytest.raises(SchemeError, match="nothing was ever deployed"):
            call("chat", who="ann")
    registry.deploy("chat", "full", who="ann")
    assert registry.undeploy("chat", who="ann").state == "stopped"
    assert registry.undeploy("chat", who="bob").who == "ann"
    assert registry.serving("chat") is None
    assert [row.state for row in registry.deployments()] == ["stopped"]
    with pytest.raises(SchemeError, match="nothing serves, so nothing can be tried"):
        registry.shift("chat", "q4", state="shadow", who="ctl")
    assert registry.history("chat")[-1].until is not None
    assert registry.rollback("chat", who="ann").artefact == "full:1"


def test_names_do_not_disturb_each_other(registry: Registry) -> None:
    passed(registry, "q4")
    registry.deploy("chat", "full", who="ann")
    registry.deploy("code", "q4", who="ann")
    registry.undeploy("chat", who="ann")
    assert serving(registry, "code").artefact == "q4:1"
    assert [row.name for row in registry.deployments()] == ["chat", "code"]
    assert len(registry.history("code")) == 1
    with pytest.raises(MissingError, match="nothing was ever deployed as 'else'"):
        registry.history("else")


def test_a_file_that_changed_may_not_serve_and_is_named(registry: Registry, folder: Path) -> None:
    (folder / "full.gguf").write_bytes(b"GGUF" + b"fulk" * 100)
    with pytest.raises(FormatError, match=r"full:1 may not serve: full.gguf: has other content"):
        registry.deploy("chat", "full", who="ann")
    passed(registry, "q4")
    with pytest.raises(FormatError, match="full:1 may not serve"):  # as the fallback of another
        registry.deploy("chat", "q4", who="ann")
    assert registry.serving("chat") is None


def test_rollback_looks_for_the_files_and_for_the_gate(registry: Registry, folder: Path) -> None:
    passed(registry, "q4")
    registry.deploy("chat", "q4", who="ann")
    registry.deploy("chat", "full", who="ann")
    (folder / "q4.gguf").rename(folder / "away")
    with pytest.raises(FormatError, match=r"q4.gguf: .*cannot be followed"):
        registry.rollback("chat", who="ann")
    (folder / "away").rename(folder / "q4.gguf")
    registry.record_verdict("q4", "fail", {}, who="gate")
    with pytest.raises(QualityError, match="failed its gate"):
        registry.rollback("chat", who="ann")
    assert serving(registry).artefact == "full:1"
    registry.override("q4", who="bob", why="better than nothing")
    assert registry.rollback("chat", who="ann").artefact == "q4:1"


def test_every_change_stands_in_the_log(registry: Registry, clock: Clock) -> None:
    registry.record_verdict("q4", "fail", {}, who="gate")
    registry.override("q4", who="bob", why="so be it")
    registry.deploy("chat", "q4", who="ann")
    clock.advance(1)
    registry.note(Note("restart", "chat", "srv", {"pid": 7}), Note("restart", "chat", "srv", {"pid": 8}))
    found = [(event.who, event.what, event.subject) for event in registry.events(since=3)]
    assert found == [
        ("gate", "verdict", "q4:1"), ("bob", "override", "q4:1"), ("ann", "deploy", "chat"),
        ("srv", "restart", "chat"), ("srv", "restart", "chat"),
    ]  # fmt: skip
    last = registry.events(since=7)
    assert [(event.id, event.at, event.details) for event in last] == [(8, "2027-01-02T03:04:06.000000Z", {"pid": 8})]
    assert [event.id for event in registry.events(since=2, limit=2)] == [3, 4]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET id = id", "DELETE FROM {}", "INSERT OR REPLACE INTO {0} SELECT * FROM {0}"]
)
def test_no_program_can_change_what_is_there(registry: Registry, folder: Path, table: str, change: str) -> None:
    registry.override("q4", who="bob", why="so be it")
    registry.record_verdict("q4", "pass", {}, who="gate")
    registry.deploy("chat", "full", who="ann")
    with sqlite3.connect(folder / "registry.db") as connection:
        before = connection.execute(f"SELECT * FROM {table}").fetchall()
        assert before
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} is only ever added to"):
            connection.execute(change.format(table))
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == before
    connection.close()


def test_a_version_cannot_be_replaced_under_another_id(registry: Registry, folder: Path) -> None:
    columns = "name, version, kind, path, is_absolute, files, nbytes, sha256, added, who"
    with sqlite3.connect(folder / "registry.db") as connection:
        statement = f"INSERT OR REPLACE INTO artefacts ({columns}) SELECT {columns} FROM artefacts WHERE id = 2"
        with pytest.raises(sqlite3.IntegrityError, match="artefacts is only ever added to"):
            connection.execute(statement)
    connection.close()


def test_a_batch_with_a_bad_event_leaves_nothing(registry: Registry) -> None:
    before = registry.events()
    with pytest.raises(SchemeError, match="what: 1 to 2000 printable characters"):
        registry.note(
            Note("good", "chat", "srv", {}), Note("bad\n", "chat", "srv", {}), Note("\x1b[2J", "c", "srv", {})
        )
    assert registry.events() == before


def test_a_reader_can_change_nothing(registry: Registry, folder: Path) -> None:
    with Registry.open(folder) as reader, pytest.raises(SchemeError, match="opened for reading"):
        reader.deploy("chat", "full", who="ann")


def test_nothing_is_made_where_nothing_was_asked_for(tmp_path: Path) -> None:
    for mode in ("read", "write"):
        with pytest.raises(MissingError, match="no registry here"):
            Registry.open(tmp_path / "none", mode=mode)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_without_a_zone_is_refused(folder: Path) -> None:
    with Registry.open(folder, mode="create", clock=lambda: datetime(2027, 1, 1)) as opened:
        with pytest.raises(SchemeError, match="must know its time zone"):
            opened.add_artefact("full", folder / "full.gguf", who="ann")
        assert opened.artefacts() == ()


def test_a_closed_registry_says_so_and_lets_others_write(registry: Registry, folder: Path) -> None:
    other = Registry.open(folder, mode="write", is_exclusive=True)
    other.close()
    other.close()
    with pytest.raises(SchemeError, match="closed database"):
        other.artefacts()
    registry.deploy("chat", "full", who="ann")

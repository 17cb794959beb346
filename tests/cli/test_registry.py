"""tersor registry from the command line: the way of an artefact from its file to serving, and back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note

from .conftest import Run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files that begin like a GGUF, which TERSOR_REGISTRY names."""
    path = tmp_path / "served"
    path.mkdir()
    for name in ("full", "q4"):
        (path / f"{name}.gguf").write_bytes(b"GGUF" + name.encode())
    monkeypatch.setenv("TERSOR_REGISTRY", str(path))
    return path


@pytest.fixture
def filled(run: Run, folder: Path) -> Path:
    for name, more in (("full", ()), ("q4", ("--baseline", "full"))):
        outcome = run("registry", "add", folder / f"{name}.gguf", "--name", name, "--who", "ann", *more)
        assert outcome.code == 0, outcome.err
    return folder


def test_an_artefact_is_added_listed_and_shown(run: Run, filled: Path) -> None:
    listed = run("registry", "list")
    assert listed.code == 0
    for words in ("full:1", "q4:1", "gguf", "may serve"):
        assert words in listed.out
    shown = run("registry", "show", "q4")
    assert shown.code == 0
    for words in ("q4:1: gguf, 6 B, q4.gguf", "by ann, compared with full:1", "may not serve: no gate has compared it"):
        assert words in shown.out
    document = run("registry", "show", "q4", "--json").document
    assert (document["label"], document["baseline"], document["card"]) == ("q4:1", "full:1", None)
    assert [file["path"] for file in document["files"]] == ["q4.gguf"]
    assert run("registry", "add", filled / "q4.gguf", "--name", "again", "--json").document["version"] == 1


def test_the_way_of_an_artefact_to_serving_and_back(run: Run, filled: Path) -> None:
    assert "full:1 serves since" in run("registry", "deploy", "chat", "full", "--who", "ann").out
    refused = run("registry", "deploy", "chat", "q4")
    assert refused.code == 1
    assert "tersor registry override q4:1 --why" in refused.err
    answered = run("registry", "override", "q4", "--why", "tried by hand", "--who", "bob")
    assert answered.out == "q4:1 may serve: bob answers for it (tried by hand)\n"
    document = run("registry", "deploy", "chat", "q4", "--why", "smaller", "--json").document
    assert (document["artefact"], document["fallback"], document["why"]) == ("q4:1", "full:1", "smaller")
    assert "chat" in run("registry", "list").out
    assert run("registry", "rollback", "chat", "--leaving", "q4").code == 0
    assert run("registry", "rollback", "chat", "--leaving", "q4").code == 1
    intervals = run("registry", "history", "chat", "--json").document["intervals"]
    assert [row["artefact"] for row in intervals] == ["full:1", "q4:1", "full:1"]
    assert [row["until"] is None for row in intervals] == [False, False, True]
    assert intervals[0]["until"] == intervals[1]["since"]
    assert "smaller" in run("registry", "history", "chat").out
    listed = run("registry", "list", "--json").document
    assert [row["artefact"] for row in listed["deployments"]] == ["full:1"]
    assert [row["objection"] for row in listed["artefacts"]] == [None, None]


def test_the_log_says_who_did_what(run: Run, filled: Path) -> None:
    assert run("registry", "deploy", "chat", "full", "--who", "ann", "--why", "first").code == 0
    with Registry.open(filled, mode="write") as opened:
        opened.note(
            Note(
                "rollback",
                "chat",
                "eve",
                {"origin": "10.0.0.9 port 1", "result": "refused", "reason": "no [/key]\x1b[2J"},
            )
        )
    events = run("registry", "log", "--json").document["events"]
    assert [(row["what"], row["subject"], row["who"]) for row in events] == [
        ("add", "full:1", "ann"), ("add", "q4:1", "ann"), ("deploy", "chat", "ann"), ("rollback", "chat", "eve"),
    ]  # fmt: skip
    assert [row["id"] for row in run("registry", "log", "--since", 2, "--json").document["events"]] == [3, 4]
    shown = run("registry", "log").out
    for words in ("refused", "10.0.0.9", "first"):
        assert words in shown
    assert "[/key]" in shown  # neither markup
    assert "\x1b" not in shown  # nor an order to the terminal


def test_a_fallback_can_be_named(run: Run, filled: Path) -> None:
    assert run("registry", "add", filled / "full.gguf", "--name", "spare").code == 0
    assert run("registry", "override", "q4", "--why", "a trial", "--json").document["why"] == "a trial"
    assert run("registry", "deploy", "chat", "q4", "--fallback", "spare", "--json").document["fallback"] == "spare:1"


def test_verify_names_the_file_that_differs(run: Run, filled: Path) -> None:
    outcome = run("registry", "verify")
    assert (outcome.code, outcome.out) == (0, "full:1: ok\nq4:1: ok\n")
    (filled / "q4.gguf").write_bytes(b"GGUFq5")
    outcome = run("registry", "verify")
    assert outcome.code == 1
    assert "q4:1: FAILED\n  - q4.gguf: has other content: its SHA-256 is another\n" in outcome.out
    assert run("registry", "verify", "full").code == 0
    outcome = run("registry", "verify", "q4", "--json")
    assert outcome.code == 1
    assert outcome.document["passed"] is False
    assert [row["path"] for row in outcome.document["artefacts"]["q4:1"]] == ["q4.gguf"]


def test_verify_of_all_reads_the_database_too(run: Run, filled: Path) -> None:
    with sqlite3.connect(filled / "registry.db") as connection:
        connection.execute("INSERT INTO verdicts VALUES (NULL, 77, 'a', 'b', 'pass', '{}')")
    connection.close()
    outcome = run("registry", "verify", "--json")
    assert outcome.code == 1
    assert outcome.document["error"]["kind"] == "FormatError"
    assert run("registry", "verify", "q4").code == 0


def test_verdicts_are_shown(run: Run, filled: Path) -> None:
    with Registry.open(filled, mode="write") as opened:
        opened.record_verdict("q4", "fail", {"kl_mean": 3}, who="gate")
    assert "fail" in run("registry", "list").out
    shown = run("registry", "show", "q4").out
    assert ": fail (gate)" in shown
    assert "may not serve: it failed its gate" in shown
    assert run("registry", "show", "q4", "--json").document["verdicts"][0]["document"] == {"kl_mean": 3}


def test_the_folder_can_be_given_and_what_is_absent_is_named(run: Run, filled: Path, tmp_path: Path) -> None:
    outcome = run("registry", "list", "--registry", tmp_path / "none", "--json")
    assert outcome.code == 1
    assert "no registry here; `tersor registry add` begins one" in outcome.document["error"]["message"]
    assert run("registry", "show", "q9").err.startswith("error: ")
    outside = tmp_path / "away.gguf"
    outside.write_bytes(b"GGUF")
    refused = run("registry", "add", outside, "--name", "away")
    assert refused.code == 1
    assert "lies outside the folder of the registry" in refused.err
    assert run("registry", "add", outside, "--name", "away", "--absolute", "--kind", "gguf").code == 0


def test_a_user_without_a_name_is_no_obstacle(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert run("registry", "deploy", "chat", "full", "--json").document["who"] == "unknown"


def test_bad_usage_is_told_from_failure(run: Run) -> None:
    assert run("registry", "deploy", "chat").code == 2
    assert run("registry", "fly").code == 2
    assert run("registry", "--help").code == 0

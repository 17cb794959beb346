"""Exit codes, error texts, pipes and signals: the contract of every verb."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tersor import __version__
from tersor.cli import formats
from tersor.cli import main as module
from tersor.formats import FORMATS

from .conftest import Run

VERBS = ("quantize", "verify", "inspect", "formats", "doctor", "demo")


def test_help_lists_every_verb_and_the_exit_codes(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in outcome.out
    assert "Exit codes" in outcome.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_has_json(verb: str, run: Run) -> None:
    outcome = run(verb, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out


def test_version(run: Run) -> None:
    assert run("--version").out == f"tersor {__version__}\n"


@pytest.mark.parametrize("arguments", [("bogus",), ("quantize",), ("verify", "--nothing"), ("inspect", "a", "b")])
def test_bad_usage_is_two_and_says_where_help_is(arguments: tuple[str, ...], run: Run) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Try 'tersor" in outcome.err


def test_an_error_of_ours_is_one_line_and_one_document(run: Run) -> None:
    outcome = run("inspect", "/nowhere/at/all", "--json")
    assert outcome.code == 1
    assert outcome.document["error"]["kind"] == "MissingError"
    assert "no such file or folder" in outcome.document["error"]["message"]
    assert outcome.err == f"error: {outcome.document['error']['message']}\n"


def test_a_fault_of_ours_hides_its_traceback_until_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(formats, "_format_table", fail)
    outcome = run("formats")
    assert outcome.code == 1
    assert "RuntimeError: a bug" in outcome.err
    assert "TERSOR_TRACEBACK=1" in outcome.err
    assert "Traceback" not in outcome.err
    monkeypatch.setenv("TERSOR_TRACEBACK", "1")
    assert "Traceback" in run("formats").err


def test_a_verb_that_there_is_not_is_told(run: Run) -> None:
    outcome = run("qantize")
    assert (outcome.code, outcome.out) == (2, "")
    assert "No such command 'qantize'" in outcome.err


def test_an_interruption_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(formats, "_format_table", interrupt)
    outcome = run("formats")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "interrupted; nothing was left half done\n"


def test_a_full_disk_is_reported_like_any_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formats, "_format_table", fail)
    outcome = run("formats")
    assert outcome.code == 1
    assert outcome.err == "error: No space left on device\n"


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; time.sleep(0.5); from tersor.cli.main import main; sys.exit(main())",
            "formats",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(30)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_control_c_from_outside_is_130(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts with it ignored
        "from tersor.cli import formats\n"
        "from tersor.cli.main import main\n"
        "def wait():\n    sys.stderr.write('ready\\n'); sys.stderr.flush(); time.sleep(30)\n"
        "formats._format_table = wait\n"
        "sys.exit(main(['formats']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_formats_lists_every_format_within_100_columns(run: Run) -> None:
    lines = run("formats").out.splitlines()
    for name in FORMATS:
        assert any(line.startswith(f"{name} ") for line in lines), name
    table = lines[: next(index for index, line in enumerate(lines) if line.startswith("int groups"))]
    assert max(map(len, table)) <= 100
    assert not any("…" in line.split()[0] for line in table if line.strip())


def test_formats_as_json_hold_the_whole_table(run: Run) -> None:
    rows = {row["name"]: row for row in run("formats", "--json").document["formats"]}
    assert list(rows) == list(FORMATS)
    for name, form in FORMATS.items():
        assert rows[name]["bits_per_weight"] == form.bits_per_weight
        assert rows[name]["unit"] == form.unit


def test_file_types_name_their_exceptions(run: Run) -> None:
    outcome = run("formats", "--files")
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("q4_k_m ")]
    assert "q6_k: attn_v, ffn_down (more bits layers)" in line
    names = [row["name"] for row in run("formats", "--files", "--json").document["file_types"]]
    assert {"f32", "q4_k_m", "iq4_nl", "q4_k_pure"} <= set(names)


def test_main_returns_and_never_exits(run: Run) -> None:
    assert isinstance(module.main(["--version"]), int)

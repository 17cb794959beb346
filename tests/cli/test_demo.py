"""demo rollout from the command line, as a process of its own: what it decides, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tersor.deploy.rollout.decision import replayed

from .conftest import Run

pytest.importorskip("xllamacpp", reason="it serves GGUFs: pip install 'tersor[llama]'")
pytest.importorskip("starlette", reason="it speaks HTTP: pip install 'tersor[serve]'")
pytest.importorskip("uvicorn", reason="it listens: pip install 'tersor[serve]'")
Process = subprocess.Popen[str]


@contextlib.contextmanager
def demo(*options: str) -> Iterator[Process]:
    """`tersor demo rollout`, ended at the end at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tersor", "demo", "rollout", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def descendants(pid: int) -> list[int]:
    """Process ids of its children, and of theirs."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(word) for word in path.read_text().split()] if path.exists() else []
    return [*children, *(one for child in children for one in descendants(child))]


def gone(pids: list[int]) -> bool:
    """Whether none of them is there, in a few seconds."""
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def line_with(process: Process, words: str) -> str:
    """The next line of stdout that has these words in it."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(process.communicate())


def test_the_good_candidate_is_promoted_the_bad_one_rolled_back_and_no_client_sees_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with demo("--json", "--keep", "--samples", "30", "-o", str(folder)) as process:
        found = json.loads(line_with(process, "{"))
        assert [(one["format"], one["outcome"]) for one in found["candidates"]] == [
            ("q8_0", "promoted"), ("q2_k", "rolled_back")
        ]  # fmt: skip
        assert (found["errors"], found["is_as_expected"]) == ({}, True)
        good, bad = found["candidates"]
        assert found["answered"]["q8_0"] >= good["answered"] > 30
        assert bad["answered"] <= found["answered"].get("q2_k", 0)
        assert "agreement is harmful" in bad["steps"][-1]["why"]
        records = [step["decision"] for one in (good, bad) for step in one["steps"] if step["decision"]]
        assert [replayed(one).action for one in records] == ["PROMOTE_STEP"] * 4 + ["ROLL_BACK"]
        assert [json.loads(path.read_text()) for path in sorted(folder.glob("decision-*.json"))] == records

        connection = http.client.HTTPConnection(found["address"].removeprefix("http://"), timeout=30)
        connection.request("GET", "/")
        assert connection.getresponse().status == 401  # it is still there, and asks for its key
        connection.close()
        children = descendants(process.pid)
        assert len(children) >= 3
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert gone(children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_leaves_no_process_and_no_folder(number: signal.Signals, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path))
        with demo("--samples", "30") as process:
            assert line_with(process, "dashboard").split()[1].startswith("http://127.0.0.1:")
            line_with(process, "shadow: it is compared")
            children = descendants(process.pid)
            assert len(children) >= 3
            process.send_signal(number)
            _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "interrupted; nothing was left half done\n")
    assert gone(children)
    assert list(tmp_path.glob("tersor-*")) == []


def test_decisions_are_told_with_their_numbers_as_they_come() -> None:
    with demo("--samples", "30") as process:
        assert "it answers 20 % of requests; agreement safe after" in line_with(process, "canary: ")
        assert "s of 2" in line_with(process, " samples of 30, ")
        assert " of e^3.0, harmful e^" in line_with(process, "agreement: safe after ")
        assert "decided again from its record, and the same" in line_with(process, "PROMOTE_STEP")


def test_a_folder_with_something_in_it_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deploy.yaml").write_text("mine")
    outcome = run("demo", "rollout", "-o", tmp_path)
    assert outcome.code == 1
    assert "something lies there already" in outcome.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]

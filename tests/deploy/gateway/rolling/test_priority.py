"""A candidate in the shadow computes where nobody else does; from its first request on it is treated as all are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.deploy.gateway.rolling.priority import can_return, put_last

from ..conftest import Live, live
from ..operating.orders import JSON, asked, ordered, seen
from ..sampled.figures import wait_for
from .nets import plain, slow

pytestmark = pytest.mark.skipif(
    not can_return(), reason="may not take back a priority: needs Linux and CAP_SYS_NICE, or a limit `ulimit -e 20`"
)
THREADS = """
import threading, sys
def more():
    sys.stdin.readline()
    threading.Thread(target=sys.stdin.readline).start()
    print("two", flush=True)
threading.Thread(target=more).start()
print("one", flush=True)
"""
YAML = """
models:
  net:
    primary: old
    candidate: new
    variants:
      old: {engine: onnxruntime, path: plain.onnx}
      new: {engine: onnxruntime, path: slow.onnx}
    rollout: {steps: [50, 100], shadow: 100, shadow_time: 100, min_samples: 100000}
"""


def classes(pid: int) -> set[int]:
    """Scheduling classes of the threads of a process."""
    return {os.sched_getscheduler(int(path.name)) for path in Path(f"/proc/{pid}/task").iterdir()}


def engine(gateway: Live, file: str) -> int:
    """Process that runs an artefact."""
    (pid,) = gateway.engines(file)
    return pid


def test_all_threads_of_a_process_are_put_last_and_back_and_so_are_those_that_come_later() -> None:
    usual = os.sched_getscheduler(0)
    command = [sys.executable, "-c", THREADS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        put_last(process.pid, is_last=True)
        assert classes(process.pid) == {os.SCHED_IDLE}
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "two\n"
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) >= 2
        assert classes(process.pid) == {os.SCHED_IDLE}
        put_last(process.pid, is_last=False)
        assert classes(process.pid) == {usual}
        process.stdin.close()
    put_last(process.pid, is_last=True)  # it is gone


def test_a_candidate_is_put_last_while_nobody_waits_for_its_answers(tmp_path: Path) -> None:
    plain(tmp_path / "plain.onnx")
    slow(tmp_path / "slow.onnx")
    (tmp_path / "deploy.yaml").write_text(YAML)
    usual = {os.sched_getscheduler(0)}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
    with live(tmp_path / "deploy.yaml") as gateway:
        wait_for(lambda: seen(gateway, "net")["rollout"]["state"] == "shadow")
        new, old = engine(gateway, "slow.onnx"), engine(gateway, "plain.onnx")
        wait_for(lambda: classes(new) == {os.SCHED_IDLE})
        assert classes(old) == classes(gateway.process.pid) == usual
        os.kill(new, signal.SIGSTOP)  # as if the machine had not a moment left for it
        try:
            assert asked(gateway.address, "POST", "/v2/models/net/infer", body, JSON)[0] == 200
            wait_for(lambda: classes(new) == usual, seconds=8)
        finally:
            os.kill(new, signal.SIGCONT)
        wait_for(lambda: seen(gateway, "net")["rollout"]["shadow"]["compared"] == 1)
        wait_for(lambda: classes(new) == {os.SCHED_IDLE})
        assert ordered(gateway, "promote", "net")[0] == 200
        assert classes(new) == usual
        _, told, headers = asked(gateway.address, "POST", "/v2/models/net/infer", body, JSON)
        assert (headers["x-tersor-variant"], told["outputs"][0]["data"]) == ("new", [2.0, 4.0, 6.0])

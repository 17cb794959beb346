"""When the machine has no room, full precision is slow, or the wall clock jumps: requests are answered all the same."""

from __future__ import annotations

import ast
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tersor

from .conftest import YAML, Live, live
from .test_faults import asked, engine_of, until

BODY = {"model": "demo", "prompt": "def f(", "max_tokens": 24, "temperature": 1}
ONES = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}
ON_LINUX = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits a process that runs")
JUMPING = """
import sys, time
real = time.time
time.time = lambda: real() + 3600 * (int(real()) % 2 * 2 - 1)
from tersor.cli.main import main
sys.argv = ["tersor", *sys.argv[1:]]
main()
"""


def answers(gateway: Live, count: int) -> list[dict[str, str]]:
    """Headers of answers to both models, all with status 200."""
    found = []
    for seed in range(count):
        for path, body in (("/v1/completions", {**BODY, "seed": seed}), ("/v2/models/twice/infer", ONES)):
            status, made, headers = asked(gateway.address, path, body)
            assert status == 200, made
            found.append(headers)
    return found


@ON_LINUX
def test_an_engine_without_memory_is_passed_by(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML)) as gateway:
        victim = engine_of(gateway, "small.gguf")
        pages = int(Path(f"/proc/{victim}/statm").read_text().split()[0])
        room = pages * resource.getpagesize()
        resource.prlimit(victim, resource.RLIMIT_AS, (room, room))
        told = answers(gateway, 10)
        # It may get by with what it has, or die of it; nobody notices either.
        assert {headers["x-tersor-variant"] for headers in told} <= {"quantized", "full"}


@ON_LINUX
def test_nothing_of_serving_writes_into_a_full_disk(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML)) as gateway:
        for pid in (gateway.process.pid, *gateway.children()):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
        victim = engine_of(gateway, "small.gguf")
        os.kill(victim, signal.SIGKILL)
        answers(gateway, 4)
        until(lambda: victim not in gateway.children() and len(gateway.children()) == 4)
        until(lambda: asked(gateway.address, "/v1/completions", BODY)[2]["x-tersor-variant"] == "quantized", 40)


def test_a_client_that_leaves_inside_of_a_body_is_no_event(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML)) as gateway:
        host, _, port = gateway.address.removeprefix("http://").partition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=10) as client:
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                time.sleep(0.05)
        answers(gateway, 1)
        gateway.process.send_signal(signal.SIGTERM)
        _, told = gateway.process.communicate(timeout=30)
        assert "Traceback" not in told


def test_a_sound_answer_does_not_wait_for_full_precision_that_hangs(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML.replace("deadline_s: 20", "deadline_s: 4"))) as gateway:

        def told(seed: int) -> tuple[int, dict[str, str]]:
            status, _, headers = asked(gateway.address, "/v1/completions", {**BODY, "seed": seed})
            return status, headers

        unsure = [seed for seed in range(120) if told(seed)[1].get("x-tersor-fallback") == "low margin"]
        assert unsure, "no answer was unsure"
        os.kill(engine_of(gateway, "full.gguf"), signal.SIGSTOP)
        for seed in unsure[:2]:
            status, headers = told(seed)
            assert (status, headers.get("x-tersor-variant")) == (200, "quantized"), headers


def test_a_wall_clock_that_jumps_changes_nothing(deployed: Callable[[str], Path]) -> None:
    with live(deployed(YAML), command=(sys.executable, "-c", JUMPING, "serve")) as gateway:
        (listed,) = asked(gateway.address, "/v1/models")[1]["data"]
        assert abs(listed["created"] - time.time()) > 1800  # it is that clock
        told = answers(gateway, 8)
        assert {headers.get("x-tersor-fallback", "low margin") for headers in told} == {"low margin"}
        assert len(gateway.children()) == 4


def test_no_deadline_is_told_by_the_wall_clock() -> None:
    """What waits asks a clock that never jumps; `time.time` is shown, or names minutes, by these modules."""
    shown = {
        "gateway/openai.py", "gateway/app.py", "gateway/dashboard/samples.py", "gateway/recording/recorder.py",
        "gateway/dashboard/routes.py",
    }  # fmt: skip
    root, found = Path(tersor.__file__).parent / "deploy", set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time":
                found.add(path.relative_to(root).as_posix())
            assert not (isinstance(node, ast.ImportFrom) and node.module == "time"), path
    assert found <= shown

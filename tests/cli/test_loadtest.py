from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

SHORT = ("--rate", "20,40", "--seconds", 0.5)


class Server(ThreadingHTTPServer):
    """Answers "ok", under /broken with status 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.requestline, dict(self.headers), body))
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        self.wfile.flush()

    do_POST = do_GET  # noqa: N815  # its name in the standard library

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # its name there
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_the_table_has_a_column_for_each_rate(run: Run, server: Server) -> None:
    done = run("loadtest", f"{server.url}/health", *SHORT)
    assert done.code in (0, 3), done.err  # 3 where this machine was too busy to send in time
    lines = done.out.splitlines()
    assert lines[0] == f"{server.url}/health: GET /health"
    assert next(line for line in lines if line.startswith("what")).split() == ["what", "20/s", "40/s"]
    for start in ("offered, requests/s", "goodput ", "latency p99, ms", "lag p99, ms", "status 200"):
        assert any(line.startswith(start) for line in lines), start
    assert next(line for line in lines if line.startswith("status 200")).split()[-2:] == ["10", "20"]
    assert any(line.startswith("note: intervals take requests as independent") for line in lines)


def test_json_is_one_document_and_names_no_secret(run: Run, server: Server, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text("{}")
    arguments = (f"{server.url}/a?key=secret", "--body", body, f"--body={body}", "--header", "Authorization: secret")
    done = run("loadtest", *arguments, "--header=X-Y:secret", "--rate", 20, "--seconds", 0.3, "--json")
    assert done.document["steps"][0]["statuses"] == {"200": 6}
    assert set(done.document) >= {"outcome", "versions", "command", "date", "machine", "settings", "notes"}
    assert done.document["command"] == (
        f"tersor loadtest {server.url}/a --body body.json --body=body.json --header Authorization:… "
        "--header=X-Y:… --rate 20 --seconds 0.3 --json"
    ).replace("Authorization:…", "'Authorization:…'").replace("--header=X-Y:…", "'--header=X-Y:…'")
    assert "secret" not in done.out
    assert str(tmp_path) not in done.out
    line, headers, sent = server.requests[0]
    assert (line, sent) == ("POST /a?key=secret HTTP/1.1", b"{}")
    assert (headers["Authorization"], headers["X-Y"]) == ("secret", "secret")


def test_the_exit_code_tells_fail_and_inconclusive(run: Run, server: Server) -> None:
    failed = run("loadtest", f"{server.url}/broken", *SHORT, "--min-goodput", 0.9)
    assert failed.code in (1, 3), failed.out
    assert "goodput is 0 " in failed.out
    unclear = run("loadtest", server.url, *SHORT, "--min-goodput", 0.999)  # 30 requests do not prove that
    assert unclear.code == 3
    assert "inconclusive: 20/s: " in unclear.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "1,x"), "--rate takes numbers with commas between"),
        (("--header", "x"), "--header takes a name and a value"),
        (("--body", "absent.json"), "no such file to send"),
        (("--openai", "--path", "/x"), "goes with neither"),
        (("--seconds", "0"), "a step lasts up to"),
    ],
)
def test_options_that_make_no_sense_are_refused(run: Run, options: tuple[str, ...], message: str) -> None:
    done = run("loadtest", "http://localhost:1", *options)
    assert done.code == 1
    assert message in done.err


def test_a_server_that_is_not_there_is_no_success(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = run("loadtest", f"http://127.0.0.1:{port}/", "--rate", "10", "--seconds", 0.5)
    assert done.code == 1, done.err
    assert "connect" in done.out

"""Real servers that take alerts: of HTTP and of SMTP, on a port of their own."""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import http.server
import json
import shutil
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of a server on this machine."""
    key, made = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", made, "-days", "2", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return key, made


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Hook:
    """What a webhook got: paths, headers and documents; `statuses` it answers with, the last one for ever.

    drip_s  seconds between the bytes of its answer
    """

    statuses: list[int] = field(default_factory=lambda: [200])
    drip_s: float = 0.0
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    documents: list[Any] = field(default_factory=list)
    port: int = 0

    @contextlib.contextmanager
    def running(self, secured: tuple[Path, Path] | None = None) -> Iterator[str]:
        """Yield its address."""
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.paths.append(self.path)
                hook.headers.append({name.lower(): value for name, value in self.headers.items()})
                status = hook.statuses.pop(0) if len(hook.statuses) > 1 else hook.statuses[0]
                answer = f"HTTP/1.1 {status} So\r\nLocation: http://127.0.0.1:{hook.port}/elsewhere\r\n"
                for byte in (answer + "Content-Length: 0\r\nConnection: close\r\n\r\n").encode():
                    self.wfile.write(bytes([byte]))
                    if hook.drip_s:
                        time.sleep(hook.drip_s)
                hook.documents.append(json.loads(body))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # theirs
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that left is expected here."""

        server = Server(("127.0.0.1", 0), Handler)
        if secured is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(secured[1], secured[0])
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        with serving(server):
            yield f"http{'s' if secured else ''}://127.0.0.1:{self.port}"


@dataclass
class Post:
    """What a mail server got: letters, who they are for, and secrets; with keys it speaks TLS.

    refusals  codes that it answers MAIL with first
    """

    secured: tuple[Path, Path] | None = None
    is_tls_at_once: bool = False
    refusals: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    to: list[str] = field(default_factory=list)
    letters: list[EmailMessage] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Yield its port."""
        post = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                talk = _Conversation(post, self)
                with contextlib.suppress(OSError):
                    talk.hold()
                talk.close()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        with Server(("127.0.0.1", 0), Handler) as server, serving(server):
            yield server.server_address[1]


class _Conversation:
    def __init__(self, post: Post, handler: socketserver.StreamRequestHandler) -> None:
        self.post, self.handler = post, handler
        self.read: Any = handler.rfile
        self.write: Any = handler.wfile
        self.is_secure = False
        self.sockets: list[Any] = []

    def secure(self) -> None:
        assert self.post.secured is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.post.secured[1], self.post.secured[0])
        wrapped = context.wrap_socket(self.handler.request, server_side=True, do_handshake_on_connect=False)
        self.sockets.append(wrapped)
        wrapped.do_handshake()
        self.read, self.write, self.is_secure = wrapped.makefile("rb"), wrapped.makefile("wb", buffering=0), True

    def close(self) -> None:
        for one in (self.read, self.write, *self.sockets):
            with contextlib.suppress(OSError):
                one.close()

    def say(self, line: str) -> None:
        self.write.write(f"{line}\r\n".encode())

    def hold(self) -> None:
        if self.post.is_tls_at_once:
            self.secure()
        self.say("220 test")
        while line := self.read.readline().decode().strip():
            self.post.said.append(line)
            word = line.split()[0].upper()
            if word == "QUIT":
                return self.say("221 bye")
            getattr(self, word.lower(), self.other)(line)
        return None

    def ehlo(self, line: str) -> None:
        offers = ["test", *(["STARTTLS"] if self.post.secured and not self.is_secure else []), "AUTH PLAIN"]
        for number, offer in enumerate(offers):
            self.say(f"250{' ' if number == len(offers) - 1 else '-'}{offer}")

    def starttls(self, line: str) -> None:
        self.say("220 go on")
        self.secure()

    def auth(self, line: str) -> None:
        self.post.secrets.append(base64.b64decode(line.split()[2]).decode())
        self.say("235 yes" if self.is_secure else "538 not in the clear")

    def mail(self, line: str) -> None:
        self.say(f"{self.post.refusals.pop(0)} later" if self.post.refusals else "250 yes")

    def rcpt(self, line: str) -> None:
        self.post.to.append(line.partition("<")[2].partition(">")[0])
        self.say("250 yes")

    def data(self, line: str) -> None:
        self.say("354 go on")
        lines = []
        while (got := self.read.readline()) != b".\r\n":
            lines.append(got)
        made = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
        assert isinstance(made, EmailMessage)
        self.post.letters.append(made)
        self.say("250 yes")

    def other(self, line: str) -> None:
        self.say("250 yes" if line.upper().startswith(("RSET", "NOOP")) else "502 what?")

"""Alerts reach a webhook and a mailbox, or are given up; nobody waits for it, and no secret is told."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.deploy.alerting import delivery as module
from tersor.deploy.alerting.book import Alert
from tersor.deploy.alerting.delivery import Delivery
from tersor.deploy.alerting.mail import Mail
from tersor.deploy.alerting.plan import MailPlan
from tersor.deploy.alerting.webhook import Webhook

from .receivers import NEEDS_OPENSSL, Hook, Post, certificate

ALERT = Alert("EngineDown", "m", "q", "firing", 1_800_000_000.0, 1.0, 0.5)
SECRET = "/services/T0/very-secret?token=hush"


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def hushed(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that was logged has the secret in it."""
    told = "\n".join([caplog.text, *(str(record.exc_info) for record in caplog.records)])
    assert "hush" not in told
    assert "very-secret" not in told


def test_an_alert_is_posted_as_json_and_logged_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hook = Hook()
    with hook.running() as address:
        delivery = Delivery(Webhook(address + SECRET))
        delivery.tell(ALERT)
        delivery.tell(replace(ALERT, state="resolved"))
        until(lambda: len(hook.documents) == 2)
        delivery.close()
    first, second = hook.documents
    assert first == {
        "schema": "tersor.alert/1", "alert": "EngineDown", "model": "m", "variant": "q", "state": "firing",
        "severity": "critical", "since": 1_800_000_000.0, "figure": "engine_down", "value": 1.0, "limit": 0.5,
        "summary": "An engine does not answer",
        "remedy": "look at its reason in GET /v1/rollout; the fallback answers meanwhile",
    }  # fmt: skip
    assert second["state"] == "resolved"
    assert hook.paths == [SECRET] * 2
    assert hook.headers[0]["content-type"] == "application/json"
    assert "critical: EngineDown of m/q" in caplog.text
    assert (delivery.lost, delivery.dropped) == (0, 0)
    hushed(caplog)


def test_what_is_not_taken_is_sent_again_and_then_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hook = Hook(statuses=[500, 302, 200, 503])
    with hook.running() as address:
        delivery = Delivery(Webhook(address + SECRET), waits_s=(0.01, 0.01))
        delivery.tell(ALERT)
        until(lambda: len(hook.documents) == 3)
        assert delivery.lost == 0
        delivery.tell(ALERT)
        until(lambda: delivery.lost == 1)
        delivery.close()
    assert hook.paths == [SECRET] * 6  # the redirect was not followed
    assert "webhook at 127.0.0.1: answered with status 503" in caplog.text
    hushed(caplog)


def test_nobody_waits_for_a_webhook_that_hangs_and_its_queue_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        delivery = Delivery(Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET}", timeout_s=30))
        finished = threading.Event()

        def tell() -> None:
            for _ in range(50):
                delivery.tell(ALERT)
            finished.set()

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        assert finished.wait(5), "whoever tells waits"
        assert delivery.dropped >= 44
        delivery.close(0.05)
    assert "alerts were not delivered before the end" in caplog.text
    hushed(caplog)


def test_an_answer_that_drips_is_given_up_in_time() -> None:
    hook = Hook(drip_s=0.1)  # eight seconds in all, never a tenth without a byte
    with hook.running() as address:
        with pytest.raises(EngineError, match=r"webhook at 127\.0\.0\.1: timeout"):
            Webhook(address, timeout_s=0.3).send({})
        assert hook.documents == []


def test_who_is_not_there_or_speaks_otherwise_is_an_error_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(EngineError) as caught:
        Webhook(f"http://127.0.0.1:{port}{SECRET}").send({})
    assert str(caught.value) == "webhook at 127.0.0.1: connect"
    assert caught.value.__suppress_context__
    with pytest.raises(EngineError, match=r"webhook at no-such-host\.invalid: not found"):
        Webhook(f"http://no-such-host.invalid{SECRET}").send({})
    with Post().running() as port, pytest.raises(EngineError, match=r"127\.0\.0\.1: not HTTP"):
        Webhook(f"http://127.0.0.1:{port}{SECRET}").send({})
    hushed(caplog)


@NEEDS_OPENSSL
def test_https_checks_who_it_talks_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = certificate(tmp_path)
    hook = Hook()
    with hook.running(made) as address:
        with pytest.raises(EngineError, match=r"127\.0\.0\.1: tls"):
            Webhook(address).send({"a": 1})
        assert hook.documents == []
        monkeypatch.setenv("SSL_CERT_FILE", str(made[1]))
        Webhook(address).send({"a": 2})
        assert hook.documents == [{"a": 2}]


@pytest.mark.parametrize(
    "url",
    ["", "hush", "ftp://h/hush", "http://", "http://user:hush@h/", "http://h:x/hush", "http://h/hush\r\nA: b", "h"],
)
def test_what_is_no_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SchemeError) as caught:
        Webhook(url)
    assert "hush" not in str(caught.value)


def test_a_letter_comes_whole(caplog: pytest.LogCaptureFixture) -> None:
    post = Post()
    with post.running() as port:
        plan = MailPlan("127.0.0.1", "gateway@example.org", ("a@example.org", "b@example.org"), port, "none")
        delivery = Delivery(mail=Mail(plan))
        delivery.tell(ALERT)
        until(lambda: len(post.letters) == 1)
        delivery.close()
    (letter,) = post.letters
    assert post.to == ["a@example.org", "b@example.org"]
    assert (letter["From"], letter["To"]) == ("gateway@example.org", "a@example.org, b@example.org")
    assert letter["Subject"] == "[tersor] firing: EngineDown of m/q"
    assert letter["Date"]
    assert letter["Message-ID"].endswith("@example.org>")
    assert letter.get_content().strip() == ALERT.text()


def test_a_server_that_wants_mail_later_gets_it_later() -> None:
    post = Post(refusals=[451, 451])
    with post.running() as port:
        delivery = Delivery(
            mail=Mail(MailPlan("127.0.0.1", "g@x.org", ("a@x.org",), port, "none")), waits_s=(0.01, 0.01)
        )
        delivery.tell(ALERT)
        until(lambda: len(post.letters) == 1)
        delivery.close()
    assert delivery.lost == 0


@NEEDS_OPENSSL
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_password_comes_from_the_environment_and_goes_over_tls_alone(
    security: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = certificate(tmp_path)
    post = Post(secured=made, is_tls_at_once=security == "tls")
    with post.running() as port:
        plan = MailPlan("127.0.0.1", "g@x.org", ("a@x.org",), port, security, "ann", "MAIL_WORD")  # type: ignore[arg-type]
        monkeypatch.delenv("MAIL_WORD", raising=False)
        with pytest.raises(MissingError, match="the environment variable MAIL_WORD holds no password"):
            Mail(plan)
        monkeypatch.setenv("MAIL_WORD", "hush")
        with pytest.raises(EngineError, match=r"mail by 127\.0\.0\.1: SSLCertVerificationError"):
            Mail(plan).send("s", "t")
        assert post.secrets == []
        monkeypatch.setenv("SSL_CERT_FILE", str(made[1]))
        Mail(plan).send("s", "t")
    assert post.secrets == ["\0ann\0hush"]
    assert len(post.letters) == 1
    hushed(caplog)


def test_a_server_without_tls_gets_neither_password_nor_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_WORD", "hush")
    post = Post()
    with post.running() as port:
        plan = MailPlan("127.0.0.1", "g@x.org", ("a@x.org",), port, "starttls", "ann", "MAIL_WORD")
        with pytest.raises(EngineError, match=r"mail by 127\.0\.0\.1: SMTPNotSupportedError"):
            Mail(plan).send("s", "t")
    assert (post.secrets, post.letters) == ([], [])


def test_a_name_with_line_breaks_adds_no_header() -> None:
    post = Post()
    with post.running() as port:
        mail = Mail(MailPlan("127.0.0.1", "g@x.org", ("a@x.org",), port, "none"))
        mail.send("a\r\nBcc: evil@example.org\r\n\r\nbody", "text\r\n.\r\nMAIL FROM:<evil@example.org>")
    (letter,) = post.letters
    assert letter["Bcc"] is None
    assert post.to == ["a@x.org"]
    assert sum(line.upper().startswith("MAIL") for line in post.said) == 1


def test_a_webhook_that_hangs_does_not_hold_up_mail() -> None:
    post = Post()
    with post.running() as port, socket.create_server(("127.0.0.1", 0)) as silent:
        webhook = Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=30)
        mail = Mail(MailPlan("127.0.0.1", "g@x.org", ("a@x.org",), port, "none"))
        delivery = Delivery(webhook, mail)
        for _ in range(3):
            delivery.tell(ALERT)
        until(lambda: len(post.letters) == 3)
        delivery.close(0.05)


def test_what_waits_when_it_ends_is_tried_once_more() -> None:
    hook = Hook(statuses=[500, 200])
    with hook.running() as address:
        delivery = Delivery(Webhook(address), waits_s=(60.0,))
        delivery.tell(ALERT)
        delivery.tell(replace(ALERT, model="n"))
        until(lambda: len(hook.documents) == 1)
        delivery.close(5.0)
        assert [one["model"] for one in hook.documents] == ["m", "n"]
        assert delivery.lost == 1
        delivery.tell(ALERT)  # after the end: the log alone
        assert len(hook.documents) == 2

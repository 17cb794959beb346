"""The page at `/` of a real gateway: what it says, who may read it, and who may order something by it."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import signal
import time
import tomllib
from pathlib import Path

import pytest

from tersor.deploy.gateway.dashboard import assets as module
from tersor.deploy.gateway.dashboard.assets import assets

from ..conftest import YAML, Live, live
from ..operating.orders import answered_by, asked
from .reading import Parsed, got

HOSTILE = "<script>alert(1)</script>'\"&"


def rest(response: http.client.HTTPResponse) -> bytes:
    """What is left of a stream, which ends soon."""
    seen, end = b"", time.monotonic() + 20
    while piece := response.read1(1 << 16):
        seen += piece
        assert time.monotonic() < end, "the stream goes on"
    return seen


def lines(keyable: Path, name: str) -> list[tuple[str, str, str]]:
    """Who, what and result of the audit log."""
    rows = map(json.loads, (keyable / f"{name}.audit.jsonl").read_text().splitlines())
    return [(row["who"], row["what"], row["result"]) for row in rows]


def session(gateway: Live, key: str) -> dict[str, str]:
    """The header of a new session."""
    while (told := got(gateway.address, "/dashboard/sign-in", form={"key": key}))[0] == 429:
        time.sleep(int(told[2]["retry-after"]))
    status, _, headers = told
    assert (status, headers["location"]) == (303, "/")
    return {"Cookie": headers["set-cookie"].partition(";")[0]}


def test_the_page_says_what_serves_and_loads_nothing_from_elsewhere(local: Live) -> None:
    assert answered_by(local) == "quantized"
    status, text, headers = got(local.address)
    page = Parsed(text)
    assert status == 200
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "quantized answers" in page.said
    assert "2 of 2 models serve as they should" in page.said
    for tag, attributes in page.elements:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    places = [str(one["src"]) for one in page.all("script")]
    places += [str(one["href"]) for one in page.all("link") if one["rel"] == "stylesheet"]
    assert len(places) == 6
    for place in places:
        status, content, headers = got(local.address, place)
        assert status == 200
        assert headers["content-type"].startswith("text/css" if place.endswith(".css") else "text/javascript")
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert hashlib.sha256(content.encode()).hexdigest()[:12] in place
    assert got(local.address, "/dashboard/static/..%2f..%2fassets.py")[0] == 404


def test_what_is_vendored_is_what_the_list_says_with_its_licence() -> None:
    place = Path(module.__file__).parent / "static"
    listed = tomllib.loads((place / "vendored.toml").read_text())
    names = {name for package in listed.values() for name in package["files"]}
    assert names >= set(module.VENDORED)
    for package in listed.values():
        assert any(name.endswith("LICENSE.txt") for name in package["files"])
        for name, digest in package["files"].items():
            assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest, name
    assert {path.name for path in place.iterdir()} == names | set(module.OWN) | {"vendored.toml"}
    assert len(assets()) == 6


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example"}, 403), ({"X-Forwarded-For": "127.0.0.1"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 200)],
)
def test_without_keys_this_machine_alone_reads_it(headers: dict[str, str], status: int, local: Live) -> None:
    assert got(local.address, "/", headers)[0] == status
    if status != 200:
        assert got(local.address, "/dashboard/events", headers)[0] == status


def test_an_order_needs_our_form_a_reason_and_no_other_page(local: Live, keyable: Path) -> None:
    status, text, _ = got(local.address, "/dashboard/act?action=rollback&model=demo")
    form = Parsed(text).hidden()
    assert (status, form["action"], form["model"]) == (200, "rollback", "demo")
    act, why = "/dashboard/act", {"why": HOSTILE}
    for given, headers, wanted in (
        ({**form, "csrf": "x" * 43, **why}, {}, 403),
        ({**form, "csrf": "", **why}, {}, 403),
        ({"action": "rollback", "model": "demo", **why}, {}, 403),
        ({**form, **why}, {"Origin": "http://evil.example"}, 403),
        ({**form, **why}, {"Sec-Fetch-Site": "cross-site"}, 403),
        ({**form, **why}, {"Host": "evil.example"}, 403),
        ({**form, **why}, {"Content-Type": "text/plain"}, 415),
        ({**form, "why": "   "}, {}, 400),
        ({**form, **why, "model": "none"}, {}, 404),
        ({**form, **why, "action": HOSTILE}, {}, 400),
        ({**form, "why": "x" * 9000}, {}, 413),
    ):
        status, text, _ = got(local.address, act, headers, given)
        assert status == wanted, text
        assert "<script>alert" not in text
    assert answered_by(local) == "quantized"
    status, text, _ = got(local.address, act, {"Origin": local.address}, {**form, **why})
    assert (status, "✓ done" in Parsed(text).said) == (200, True)
    assert answered_by(local) == "full"
    assert ("carol", "rollback", "done") in lines(keyable, "deploy")
    assert ("carol", "POST /dashboard/act", "refused") in lines(keyable, "deploy")
    text = got(local.address)[1]
    page = Parsed(text)
    assert "<script>alert" not in text
    assert page.said.count(HOSTILE) >= 2  # beside the model, and in the history
    assert "rolled back" in page.said
    links = [str(one["href"]) for one in page.all("a") if str(one["href"]).startswith(act)]
    assert f"{act}?action=restore&model=demo" in links
    assert f"{act}?action=rollback&model=demo" not in links
    assert got(local.address, act, None, {**form, "action": "restore", **why})[0] == 200
    assert answered_by(local) == "quantized"


def test_a_piece_for_the_dialog_is_no_whole_page(local: Live) -> None:
    _, text, _ = got(local.address, "/dashboard/act?action=reload", {"HX-Request": "true"})
    assert "<html" not in text
    assert Parsed(text).hidden()["action"] == "reload"
    for query in ("action=reload&model=demo", "action=rollback", "action=rollback&model=none", "action=none", ""):
        assert got(local.address, f"/dashboard/act?{query}")[0] == 404


def test_events_tell_everything_once_and_then_what_changed(local: Live) -> None:
    connection = http.client.HTTPConnection(local.address.removeprefix("http://"), timeout=30)
    connection.request("GET", "/dashboard/events")
    response = connection.getresponse()
    assert response.getheader("content-type", "").startswith("text/event-stream")

    def until(word: bytes) -> list[str]:
        seen = b""
        while word not in seen:
            seen += response.readline()
        return re.findall(r"^event: (.*)$", seen.decode(), re.MULTILINE)

    assert until(b"event: series\n") == [
        "shape", "overview", "alerts", "figures-0", "watch-0", "figures-1", "watch-1", "model-0", "model-1", "audit",
        "series",
    ]  # fmt: skip
    response.readline()
    form = Parsed(got(local.address, "/dashboard/act?action=rollback&model=demo")[1]).hidden()
    assert got(local.address, "/dashboard/act", None, {**form, "why": "now"})[0] == 200
    names = until(b"rolled back")
    assert "model-1" not in names
    assert "shape" not in names
    assert got(local.address, "/dashboard/act", None, {**form, "action": "restore", "why": "back"})[0] == 200
    connection.close()


def test_listeners_are_few_and_end_with_the_gateway(keyable: Path) -> None:
    (keyable / "ends.yaml").write_text(YAML)
    with live(keyable / "ends.yaml") as gateway:
        kept = []
        for _ in range(32):
            connection = http.client.HTTPConnection(gateway.address.removeprefix("http://"), timeout=30)
            connection.request("GET", "/dashboard/events")
            response = connection.getresponse()
            assert response.readline() == b"retry: 3000\n"
            kept.append((connection, response))
        status, _, headers = got(gateway.address, "/dashboard/events")
        assert (status, headers["retry-after"]) == (503, "5")
        gateway.process.send_signal(signal.SIGTERM)
        assert rest(kept[0][1]).endswith(b"\n\n")  # the end of the stream, not a cut connection
        assert gateway.process.wait(20) == 0
        for connection, _ in kept:
            connection.close()


def test_with_keys_a_session_takes_a_key(keyed: Live, keyable: Path) -> None:
    status, text, headers = got(keyed.address)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert "demo" not in Parsed(text).said
    assert [one["name"] for one in Parsed(text).all("input")] == ["key"]
    for path in ("/dashboard/events", "/dashboard/act?action=reload"):
        assert got(keyed.address, path)[0] == 401
    assert got(keyed.address, "/", {"Cookie": "tersor_session=guessed"})[0] == 401
    assert got(keyed.address, "/dashboard/sign-in", {"Origin": "http://evil.example"}, {"key": "ann"})[0] == 403
    status, text, headers = got(keyed.address, "/dashboard/sign-in", form={"key": "eve"})
    assert (status, "set-cookie" in headers, "no key of this deployment" in text) == (401, False, True)
    _, _, headers = got(keyed.address, "/dashboard/sign-in", {"X-Forwarded-Proto": "https"}, {"key": "ann"})
    cookie = headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "secure", "max-age=28800", "path=/"))
    mine = {"Cookie": headers["set-cookie"].partition(";")[0]}
    assert got(keyed.address, "/", mine)[0] == 200
    assert asked(keyed.address, "GET", "/v1/rollout", None, mine)[0] == 401  # a session is for the page alone
    form = Parsed(got(keyed.address, "/dashboard/act?action=rollback&model=demo", mine)[1]).hidden()
    assert got(keyed.address, "/dashboard/act", mine, {**form, "why": "x", "csrf": "y"})[0] == 403
    assert got(keyed.address, "/dashboard/act", None, {**form, "why": "x"})[0] == 401
    assert got(keyed.address, "/dashboard/act", {"Authorization": "Bearer ann"}, {**form, "why": "x"})[0] == 403
    assert got(keyed.address, "/dashboard/act", mine, {**form, "why": "x"})[0] == 200
    assert got(keyed.address, "/dashboard/act", mine, {**form, "action": "restore", "why": "x"})[0] == 200
    assert got(keyed.address, "/dashboard/sign-out", mine, {})[0] == 303
    assert got(keyed.address, "/", mine)[0] == 401
    told = lines(keyable, "keyed")
    for line in (("ann", "sign in", "done"), ("ann", "rollback", "done"), ("ann", "sign out", "done"),
                 ("unknown", "POST /dashboard/sign-in", "refused")):  # fmt: skip
        assert line in told


def test_a_key_that_is_no_admins_reads_and_orders_nothing(keyed: Live) -> None:
    admin = {"Authorization": "Bearer ann", "Content-Type": "application/json"}
    order = {"action": "rollback", "model": "demo", "why": "a secret reason"}
    assert asked(keyed.address, "POST", "/v1/rollout", order, admin)[0] == 200
    bob = session(keyed, "bob")
    status, text, _ = got(keyed.address, "/", bob)
    assert (status, "rolled back" in text, "secret reason" in text, "ann" in Parsed(text).said.split()) == (
        200, True, False, False,
    )  # fmt: skip
    assert "/dashboard/act" not in text
    assert got(keyed.address, "/dashboard/act?action=restore&model=demo", bob)[0] == 404
    form = {"action": "restore", "model": "demo", "why": "x", "csrf": ""}
    assert got(keyed.address, "/dashboard/act", bob, form)[0] == 403
    assert asked(keyed.address, "POST", "/v1/rollout", {**order, "action": "restore"}, admin)[0] == 200


def test_the_report_is_a_page_for_admins(keyed: Live, local: Live) -> None:
    assert got(keyed.address, "/report.html")[0] == 401
    assert got(keyed.address, "/report.html", {"Authorization": "Bearer bob"})[0] == 403
    assert "/report.html" not in got(keyed.address, "/", {"Authorization": "Bearer bob"})[1]
    status, text, headers = got(keyed.address, "/report.html", {"Authorization": "Bearer ann"})
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert "Report on keyed" in Parsed(text).said
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert policy.partition("; form-action")[0] in text  # the page says the same of itself
    assert any(one["href"] == "/report.html" for one in Parsed(got(local.address)[1]).all("a"))
    for days, status in (("3", 200), ("0", 400), ("-1", 400), ("x" * 99, 400), ("9" * 5000, 400)):
        assert got(local.address, f"/report.html?days={days}")[0] == status, days


def test_a_session_ends_with_its_key(keyed: Live, keyable: Path) -> None:
    bob, text = session(keyed, "bob"), (keyable / "keyed.yaml").read_text()
    admin = {"Authorization": "Bearer ann", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(keyed.address.removeprefix("http://"), timeout=30)
    connection.request("GET", "/dashboard/events", headers=bob)
    response = connection.getresponse()
    (keyable / "keyed.yaml").write_text(
        text.replace(hashlib.sha256(b"bob").hexdigest(), hashlib.sha256(b"bib").hexdigest())
    )
    try:
        assert asked(keyed.address, "POST", "/v1/rollout", {"action": "reload"}, admin)[0] == 200
        assert rest(response).endswith(b"\n\n")  # he listens no longer
        assert got(keyed.address, "/", bob)[0] == 401
    finally:
        (keyable / "keyed.yaml").write_text(text)
        asked(keyed.address, "POST", "/v1/rollout", {"action": "reload"}, admin)
        connection.close()


def test_who_tries_keys_is_slowed_down(keyed: Live) -> None:
    statuses = [got(keyed.address, "/dashboard/sign-in", form={"key": str(index)})[0] for index in range(12)]
    assert statuses[-1] == 429
    assert 401 in statuses or statuses[0] == 429
    assert got(keyed.address, "/", {"Authorization": "Bearer ann"})[0] == 200

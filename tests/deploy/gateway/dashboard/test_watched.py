"""The watch on the page: alerts that come by themselves, figures beside full precision, drift, the last hour drawn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.pages.test_in_browser import CONTRAST

from tersor.deploy.alerting.book import Alert
from tersor.deploy.alerting.plan import Silence
from tersor.deploy.gateway.dashboard.minutes import SPAN, minutes_of
from tersor.deploy.gateway.dashboard.watched import alert_list
from tersor.deploy.gateway.recording.incidents import drift_rows
from tersor.deploy.gateway.recording.recorder import Recorder

from ..conftest import YAML, Live, live
from ..operating.orders import answered_by
from ..recording.test_recorder import Clock
from .reading import Parsed
from .seeded import an_hour_before
from .test_in_browser import until

if TYPE_CHECKING:
    from tests.pages.chromium import Chromium

WATCHED = YAML + "monitor: {limits: {EngineRestarts: 0.5}}\n"


@pytest.fixture(scope="module")
def gateway(deployed: Callable[[str], Path]) -> Iterator[Live]:
    place = deployed(WATCHED)
    an_hour_before(place.with_name(f"{place.stem}.record.db"), "demo")
    with live(place) as found:
        answered_by(found)
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_last_hour_is_drawn_and_told(width: int, scheme: str, gateway: Live, browser: Chromium) -> None:
    page = browser.open(gateway.address, width=width, scheme=scheme)
    until(page, "document.querySelectorAll('#minutes-0 figure:not([hidden]) canvas').length === 4")
    assert page.messages == ()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    said = page.evaluate("document.body.innerText")
    for words in ("agreement with full precision", "accuracy by labels", "digits 0.4, outside 60 %", "no alert"):
        assert words in said, words
    keys = page.evaluate("[...document.querySelectorAll('#minutes-0 .keys')].map(one => one.innerText.trim())")
    assert keys[0] == "quantized"  # full precision agrees with itself
    assert all("full" in one for one in keys[1:])
    assert page.evaluate(CONTRAST) == []


def test_an_alert_that_begins_to_fire_shows_by_itself(gateway: Live, browser: Chromium) -> None:
    page = browser.open(gateway.address, width=390)
    until(page, "document.getElementById('live').textContent.startsWith('Live')")
    assert page.evaluate("document.querySelectorAll('.alert').length") == 0
    os.kill(gateway.children()[0], signal.SIGKILL)
    until(page, "document.querySelector('.alert strong')?.innerText === 'EngineRestarts'")
    told = page.evaluate("document.querySelector('.alert').innerText")
    assert "above 0.5" in told
    assert "Do: it crashes" in told
    until(page, "document.querySelector('[sse-swap=watch-0]').innerText.includes('engine restarted')")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_report_is_a_page_within_its_policy(gateway: Live, browser: Chromium) -> None:
    page = browser.open(f"{gateway.address}/report.html", width=390)
    assert page.messages == ()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.querySelector('.figures')).display") == "grid"  # its style holds
    assert "latency, p99" in page.evaluate("document.body.innerText")


def test_alerts_stand_the_worst_first_with_what_to_do() -> None:
    alerts = [
        Alert("SlowAnswers", "m", "q", "firing", 100.0, 12.0, 10.0),
        Alert("LowAgreement", "m", "q", "pending", 50.0, 0.96, 0.97),
        Alert("EngineDown", "<b>", "q", "firing", 900.0, 1.0, 0.5),
    ]
    page = Parsed(alert_list(alerts, [Silence("SlowAnswers", "2999-01-01T00:00:00Z")], 1000.0))
    assert [words for words in page.words if words in ("EngineDown", "SlowAnswers", "LowAgreement")] == [
        "EngineDown", "SlowAnswers", "LowAgreement",
    ]  # fmt: skip
    assert page.said.count("silenced") == 1
    assert "agreement is 0.96, below 0.97" in page.said
    assert "(15 min)" in page.said
    assert page.all("b") == []
    assert "no alert" in Parsed(alert_list([], [], 0.0)).said


def test_minutes_are_drawn_where_something_was_counted() -> None:
    clock = Clock()
    clock.now = clock.now // 60 * 60
    recorder = Recorder(clock)
    for minute in range(30):
        if minute != 20:
            recorder.compared("m", "q", agreed=minute >= 25)
        recorder.answered("m", "q", 0.1, 0.2)
        clock.now += 60
    told = minutes_of(recorder.records, {"m": ["q", "full"], "n": []}, clock.now - 60)
    line = told["models"]["m"]["charts"]["agreement"]["q"]
    assert len(line) == len(told["at"]) == 60
    assert line[:30] == [None] * 30
    assert (line[30], line[54], line[59]) == (0.0, 0.0, round(5 / 9, 4))  # of ten minutes, in one of which none was
    assert told["models"]["m"]["variants"] == ["q"]
    assert "accuracy" not in told["models"]["m"]["charts"]
    assert told["models"]["n"] == {"variants": [], "charts": {}}
    clock.now += 900  # nobody asks
    recorder.compared("m", "q", agreed=False)
    line = minutes_of(recorder.records, {"m": ["q"]}, clock.now)["models"]["m"]["charts"]["agreement"]["q"]
    assert (line[58], line[59]) == (None, 0.0)  # what was before lies too far back


def test_minutes_that_have_ended_are_made_once_and_stay_the_same() -> None:
    def lines(told: dict[str, Any]) -> dict[str, list[float | None]]:
        return {name: line["q"] for name, line in told["models"]["m"]["charts"].items()}

    clock, known = Clock(), dict[tuple[str, str, int], tuple[float | None, ...]]()
    clock.now = clock.now // 60 * 60
    recorder = Recorder(clock)
    before: dict[str, list[float | None]] = {}
    for minute in range(75):
        recorder.compared("m", "q", agreed=minute % 3 > 0)
        recorder.answered("m", "q", 0.01 * (minute + 1), 0.2)
        now = clock.now + 30
        told = minutes_of(recorder.records, {"m": ["q"]}, now, known)
        anew = lines(minutes_of(recorder.records, {"m": ["q"]}, now))
        # The record forgets what the first minutes of the hour looked back to; what is known of them stays.
        assert {name: line[SPAN:] for name, line in lines(told).items()} == {
            name: line[SPAN:] for name, line in anew.items()
        }
        assert all(lines(told)[name][:-2] == line[1:-1] for name, line in before.items())
        before = lines(told)
        clock.now += 60
    assert sorted(key[2] for key in known) == told["at"][:-1]  # neither what lasts, nor what is an hour old
    recorder.records["m", "q"].minutes.clear()
    left = lines(minutes_of(recorder.records, {"m": ["q"]}, now, known))
    assert {name: line[:-1] for name, line in left.items()} == {name: line[:-1] for name, line in before.items()}


@pytest.mark.parametrize("odd", [None, 3, "text", {}, [None, 3, {}, {"side": "input"}]])
def test_windows_that_were_not_kept_as_they_should_are_left_out(odd: object) -> None:
    assert drift_rows(odd) == {}

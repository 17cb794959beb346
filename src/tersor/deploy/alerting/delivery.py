"""Alerts on their way: to each place a bounded queue, a thread, few tries with growing waits. Nobody waits for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from tersor.core.errors import EngineError
from tersor.deploy.alerting.book import Alert
from tersor.deploy.alerting.mail import Mail
from tersor.deploy.alerting.webhook import Webhook

__all__ = ["Delivery"]

MOST = 100
WAITS_S = (1.0, 5.0, 25.0)
POLL_S = 0.2
_log = logging.getLogger(__name__)


class Delivery:
    """Tells of alerts: in the log at once, to a webhook and by mail soon; neither waits for the other.

    waits_s  seconds before the second try, the third …; after the last one it is given up
    """

    def __init__(
        self, webhook: Webhook | None = None, mail: Mail | None = None, waits_s: Sequence[float] = WAITS_S
    ) -> None:
        self._webhook, self._mail = webhook, mail
        self._to_webhook = None if webhook is None else _Way(webhook.shown, waits_s)
        self._to_mail = None if mail is None else _Way(mail.shown, waits_s)

    @property
    def dropped(self) -> int:
        """How many did not fit into a queue."""
        return sum(way.dropped for way in self._ways)

    @property
    def lost(self) -> int:
        """How many nobody took."""
        return sum(way.lost for way in self._ways)

    @property
    def _ways(self) -> list[_Way]:
        return [way for way in (self._to_webhook, self._to_mail) if way is not None]

    def tell(self, alert: Alert) -> None:
        """Tell of an alert that fires, or is over."""
        _log.warning("%s", alert.text())
        webhook, mail = self._webhook, self._mail
        if webhook is not None and self._to_webhook is not None:
            document = {"schema": "tersor.alert/1", **alert.to_object()}
            self._to_webhook.put(lambda: webhook.send(document))
        if mail is not None and self._to_mail is not None:
            subject = f"[tersor] {alert.state}: {alert.rule} of {alert.model}/{alert.variant}"
            self._to_mail.put(lambda: mail.send(subject, f"{alert.text()}\n"))

    def end(self) -> None:
        """Take no more; what waits is tried once again."""
        for way in self._ways:
            way.end()

    def close(self, wait_s: float = 1.0) -> None:
        """End, and wait for it, `wait_s` at most; what is left is in the log alone."""
        self.end()
        until = time.monotonic() + wait_s
        for way in self._ways:
            way.join(until)


class _Way:
    """To one place: its thread begins with the first that is sent."""

    def __init__(self, shown: str, waits_s: Sequence[float]) -> None:
        self._shown, self._waits_s = shown, tuple(waits_s)
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(MOST)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"alerts to {shown}", daemon=True)
        self.dropped = self.lost = 0

    def put(self, send: Callable[[], None]) -> None:
        if self._ended.is_set():
            return
        if not self._thread.is_alive():
            self._thread.start()
        try:
            self._queue.put_nowait(send)
        except queue.Full:
            self.dropped += 1
            _log.error("%s: too many alerts wait; this one is in the log alone", self._shown)

    def end(self) -> None:
        self._ended.set()

    def join(self, until: float) -> None:
        if self._thread.is_alive():
            self._thread.join(max(0.0, until - time.monotonic()))
        if left := self._queue.qsize() + self._thread.is_alive():
            _log.error("%s: %d alerts were not delivered before the end", self._shown, left)

    def _work(self) -> None:
        while True:
            try:
                send = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if self._ended.is_set():
                    return
                continue
            self._try(send)

    def _try(self, send: Callable[[], None]) -> None:
        for wait_s in (*self._waits_s, None):
            try:
                return send()
            except EngineError as error:
                if wait_s is None or self._ended.wait(wait_s):
                    self.lost += 1
                    _log.error("an alert was not delivered: %s", error)
                    return None
            except Exception:  # the thread goes on: the next alert may be told
                self.lost += 1
                _log.exception("%s: an alert was not delivered", self._shown)
                return None
        return None

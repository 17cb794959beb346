"""Alerts on their way: a bounded queue, a thread that sends, few tries with growing waits. Nobody waits for it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from tersor.core.errors import EngineError
from tersor.deploy.alerting.book import Alert
from tersor.deploy.alerting.mail import Mail
from tersor.deploy.alerting.webhook import Webhook

__all__ = ["Delivery"]

MOST = 100
WAITS_S = (1.0, 5.0, 25.0)
_log = logging.getLogger(__name__)


class Delivery:
    """Tells of alerts: in the log at once, to a webhook and by mail soon.

    waits_s  seconds before the second try, the third …; after the last one it is given up
    Attributes: `dropped` counts what did not fit into the queue, `lost` what nobody took.
    """

    def __init__(
        self, webhook: Webhook | None = None, mail: Mail | None = None, waits_s: Sequence[float] = WAITS_S
    ) -> None:
        self._waits_s = tuple(waits_s)
        self._queue: queue.Queue[tuple[str, Callable[[], None]]] = queue.Queue(MOST)
        self._webhook, self._mail = webhook, mail
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._work, name="alerts", daemon=True)
        self.dropped = self.lost = 0
        if webhook is not None or mail is not None:
            self._thread.start()

    def tell(self, alert: Alert) -> None:
        """Tell of an alert that fires, or is over."""
        _log.warning("%s", alert.text())
        webhook, mail = self._webhook, self._mail
        if webhook is not None:
            document = {"schema": "tersor.alert/1", **alert.to_object()}
            self._put(webhook.shown, lambda: webhook.send(document))
        if mail is not None:
            subject = f"[tersor] {alert.state}: {alert.rule} of {alert.model}/{alert.variant}"
            self._put(mail.shown, lambda: mail.send(subject, f"{alert.text()}\n"))

    def close(self, wait_s: float = 1.0) -> None:
        """Send no more; what is being sent gets `wait_s`."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def _put(self, shown: str, send: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait((shown, send))
        except queue.Full:
            self.dropped += 1
            _log.error("%s: too many alerts wait; this one is in the log alone", shown)

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                shown, send = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._try(shown, send)

    def _try(self, shown: str, send: Callable[[], None]) -> None:
        for wait_s in (*self._waits_s, None):
            try:
                return send()
            except EngineError as error:
                if wait_s is None:
                    self.lost += 1
                    _log.error("an alert was not delivered after %d tries: %s", len(self._waits_s) + 1, error)
                elif self._ended.wait(wait_s):
                    return None
            except Exception:  # the thread goes on: the next alert may be told
                self.lost += 1
                _log.exception("%s: an alert was not delivered", shown)
                return None
        return None

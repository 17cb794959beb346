"""Sessions of people who signed in with a key in a browser: known here alone, few, and not for long."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tersor.deploy.config import Key

__all__ = ["COOKIE", "LIFE_S", "Session", "Sessions"]

COOKIE = "tersor_session"
LIFE_S = 8 * 3600
MOST, MOST_OF_KEY = 64, 8
"""The oldest ends where there would be more."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who signed in.

    csrf   stands in the forms that he is shown: another page cannot know it
    until  when it ends, on the clock of `Sessions`
    """

    key: Key
    csrf: str
    until: float


@dataclass(eq=False)
class Sessions:
    """All of a gateway; a start of the gateway ends them.

    clock  seconds that never go back
    csrf   of forms where there are no keys, and so no sessions
    """

    clock: Callable[[], float] = time.monotonic
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), init=False)
    _found: dict[str, Session] = field(default_factory=dict, init=False)

    def begin(self, key: Key) -> str:
        """Return the secret of a new session, for a cookie; only its hash is kept here."""
        self._drop(lambda session: session.until <= self.clock())
        mine = [name for name, session in self._found.items() if session.key == key]
        for name in mine[: max(0, len(mine) - MOST_OF_KEY + 1)]:
            del self._found[name]
        if len(self._found) >= MOST:
            del self._found[next(iter(self._found))]
        secret = secrets.token_urlsafe(32)
        self._found[_hashed(secret)] = Session(key, secrets.token_urlsafe(32), self.clock() + LIFE_S)
        return secret

    def find(self, secret: str | None) -> Session | None:
        """Return the session of a cookie; None where there is none, or it has ended."""
        session = self._found.get(_hashed(secret)) if secret else None
        return session if session is not None and session.until > self.clock() else None

    def end(self, secret: str | None) -> None:
        """End the session of a cookie."""
        if secret:
            self._found.pop(_hashed(secret), None)

    def keep(self, keys: Iterable[Key]) -> None:
        """End the sessions of all other keys."""
        kept = set(keys)
        self._drop(lambda session: session.key not in kept)

    def _drop(self, is_over: Callable[[Session], bool]) -> None:
        self._found = {name: session for name, session in self._found.items() if not is_over(session)}


def _hashed(secret: str) -> str:
    # Looked up by a hash, so that the time of it tells nothing of the secrets that are there.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()

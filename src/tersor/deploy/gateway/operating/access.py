"""Who may ask, and who may say what serves.

With keys, a caller is who has one. Without any, everybody on this machine may ask; to change what serves takes more,
for a web page that a browser of this machine shows can send requests here too.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tersor.deploy.config import Key
from tersor.deploy.gateway.admission import RateLimit
from tersor.deploy.gateway.heads import header
from tersor.deploy.gateway.operating.audit import Author, one_line
from tersor.deploy.gateway.operating.sessions import COOKIE, Session, Sessions
from tersor.deploy.gateway.rolling.cohorts import Caller
from tersor.deploy.running.supervised import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Access", "DeniedError", "Viewer"]

UNAUTHORIZED, FORBIDDEN, UNSUPPORTED, TOO_MANY = 401, 403, 415, 429
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
CHALLENGE = {"WWW-Authenticate": "Bearer"}
SIGN_INS_A_MINUTE, MOST_ADDRESSES = 30, 1024
"""Of one address, and of how many addresses that is known."""


class DeniedError(RequestError):
    """Somebody who may not.

    cause  in a word, for the metrics
    """

    def __init__(self, reason: str, status: int, headers: Mapping[str, str] | None = None, *, cause: str) -> None:
        super().__init__(reason, status, headers)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page.

    is_admin    sees who ordered what
    csrf        of the forms that he is shown; empty: he is shown none, for he may not change what serves
    is_session  he signed in, and so can sign out
    """

    name: str
    is_admin: bool
    csrf: str = ""
    is_session: bool = False


class Access:
    """The keys of a deployment, and how often each asked; `user` is who acts where there are none."""

    def __init__(self, keys: tuple[Key, ...], user: str) -> None:
        self._user = user
        self._limits: dict[Key, RateLimit] = {}
        self._keys: tuple[Key, ...] = ()
        self._sessions = Sessions()
        self._sign_ins: OrderedDict[str, RateLimit] = OrderedDict()
        self.change(keys)

    def change(self, keys: tuple[Key, ...]) -> None:
        """Take other keys; those that stay go on with what they have asked for."""
        self._keys = keys
        self._limits = {key: self._limits.get(key) or RateLimit(key.per_minute) for key in keys}
        self._sessions.keep(keys)

    def check(self, request: Request) -> None:
        """Let a request through; DeniedError where its key may not ask, or not so often."""
        if self._keys:
            self._take(self._key(request))

    def author(self, request: Request) -> Author:
        """Return who a request comes from, as far as that is known; lets nobody through."""
        session = self._session(request)
        return self.author_of(request, self._found(request) or (session.key if session else None))

    def author_of(self, request: Request, key: Key | None) -> Author:
        """Return who a request with this key comes from; None: with no key that is known."""
        where = request.client
        return Author(
            key.name if key else "unknown" if self._keys else self._user,
            f"{where.host} port {where.port}" if where else "unknown",
        )

    def check_admin(self, request: Request, *, needs_json: bool) -> None:
        """Let a request through that may change what serves.

        needs_json  the body has to be called JSON; else it may be called nothing, where no browser sent it
        Raises DeniedError: 401 without a key, 403 for one that is not of an admin or a page of another host, 415.
        """
        if self._keys:
            key = self._key(request)
            self._take(key)
            if not key.admin:
                raise _no_admin(key.name)
        else:
            self._check_local(request)
        _check_origin(request)
        if request.method == "POST":
            kind = request.headers.get("content-type")
            is_plain = kind is None and not needs_json and "sec-fetch-site" not in request.headers
            if not is_plain and (kind or "").partition(";")[0].strip().lower() != JSON:
                raise DeniedError(f"Content-Type: {JSON} is wanted", UNSUPPORTED, cause="content_type")

    def caller(self, request: Request, user: object = None) -> Caller:
        """Return who asks, as far as it decides who answers; DeniedError where he chooses a variant and may not.

        user  what the body says
        """
        key = self._found(request) if self._keys else None
        choice = header(request, "x-tersor-variant")
        if choice and not self._keys:
            self._check_local(request)
        elif choice and (key is None or not key.admin):
            reason = "X-Tersor-Variant is for keys of an admin"
            raise DeniedError(reason, FORBIDDEN, cause="admin")
        cohort = header(request, "x-tersor-cohort") or (user if isinstance(user, str) else "")
        names = header(request, "idempotency-key") or header(request, "x-request-id")
        return Caller(key.name if key else "", cohort, names, choice)

    # People with browsers: the same keys and rules, and a session in place of a header

    def viewer(self, request: Request) -> Viewer:
        """Return who looks at a page; DeniedError where he may not. That he asks is not counted."""
        if not self._keys:
            self._check_local(request)
            return Viewer(self._user, is_admin=True, csrf=self._sessions.csrf)
        session = self._session(request)
        if session is not None:
            key = session.key
            return Viewer(key.name, key.admin, session.csrf if key.admin else "", is_session=True)
        key = self._key(request)
        return Viewer(key.name, key.admin)

    def check_page(self, request: Request) -> Viewer:
        """Return who looks at a page; DeniedError where he may not, or not so often."""
        viewer, session = self.viewer(request), self._session(request)
        if self._keys:
            self._take(session.key if session else self._key(request))
        return viewer

    def check_form(self, request: Request) -> Viewer:
        """Return who sends a form of ours; DeniedError for a page of another host, or another kind of body.

        What the form says is to be believed only after `check_token`.
        """
        _check_form(request)
        return self.check_page(request)

    @staticmethod
    def check_token(viewer: Viewer, token: str) -> None:
        """Let a form through that changes what serves: an admin's, that we have shown him; DeniedError else."""
        if not viewer.is_admin:
            raise _no_admin(viewer.name)
        if not viewer.csrf or not hmac.compare_digest(viewer.csrf.encode(), token.encode(errors="replace")):
            raise DeniedError("this form is not of this session: load the page anew", FORBIDDEN, cause="form")

    def check_sign_in(self, request: Request) -> None:
        """Let a form with a key through; DeniedError where one comes too often from its address."""
        _check_form(request)
        address = request.client.host if request.client else ""
        limit = self._sign_ins.pop(address, None) or RateLimit(SIGN_INS_A_MINUTE)
        self._sign_ins[address] = limit
        if len(self._sign_ins) > MOST_ADDRESSES:
            self._sign_ins.popitem(last=False)
        wait = limit.take()
        if wait:
            raise DeniedError("too many tried to sign in", TOO_MANY, {"Retry-After": str(wait)}, cause="rate")

    def sign_in(self, secret: str) -> tuple[Key, str]:
        """Return the key that `secret` is, and the secret of its new session; DeniedError where it is none."""
        key = self._of(secret)
        if key is None:
            raise DeniedError("no key of this deployment", UNAUTHORIZED, CHALLENGE, cause="key")
        self._take(key)
        return key, self._sessions.begin(key)

    def sign_out(self, request: Request) -> None:
        """End the session of a request."""
        self._sessions.end(request.cookies.get(COOKIE))

    @property
    def has_keys(self) -> bool:
        """Whether callers are known by keys."""
        return bool(self._keys)

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(COOKIE)) if self._keys else None

    def _key(self, request: Request) -> Key:
        found = self._found(request)
        if found is None:
            raise DeniedError(
                "a valid API key is wanted: Authorization: Bearer KEY", UNAUTHORIZED, CHALLENGE, cause="key"
            )
        return found

    def _found(self, request: Request) -> Key | None:
        scheme, _, secret = header(request, "authorization").partition(" ")
        found = self._of(secret)
        return found if scheme.lower() == "bearer" else None

    def _of(self, secret: str) -> Key | None:
        given = hashlib.sha256(secret.strip().encode(errors="replace")).hexdigest()
        # Every key is compared, so that the time tells nothing of which one came near.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, given)]
        return found[0] if found else None

    def _take(self, key: Key) -> None:
        wait = self._limits[key].take()
        if wait:
            reason = f"{key.name} may ask {key.per_minute} times a minute"
            raise DeniedError(reason, TOO_MANY, {"Retry-After": str(wait)}, cause="rate")

    @staticmethod
    def _check_local(request: Request) -> None:
        """Without keys: from this machine, by this machine's name, and not through a proxy that asks for others."""
        peer, host = request.client, request.headers.get("host", "")
        remedy = "give the deployment keys, one with `admin: true`"
        if peer is None or not _is_loopback(peer.host):
            raise DeniedError(f"without keys, only this machine says what serves; {remedy}", FORBIDDEN, cause="origin")
        if any(name in request.headers for name in PROXIED):
            raise DeniedError(
                f"without keys, nobody says what serves through a proxy; {remedy}", FORBIDDEN, cause="origin"
            )
        # A name that somebody else owns can be made to lead here, and a browser then takes his page for ours.
        if not _is_loopback(urlsplit(f"//{host}").hostname if _is_host(host) else None):
            raise DeniedError(
                f"without keys, Host is localhost or a loopback address, not {host[:80]!r}", FORBIDDEN, cause="origin"
            )


def _no_admin(name: str) -> DeniedError:
    return DeniedError(
        f"{name} may ask, but not say what serves: its key is not one of an admin", FORBIDDEN, cause="admin"
    )


def _check_form(request: Request) -> None:
    """Refuse what is no form, or one that a page of another host had a browser send."""
    _check_origin(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise DeniedError(f"Content-Type: {FORM} is wanted", UNSUPPORTED, cause="content_type")


def _check_origin(request: Request) -> None:
    """Refuse what a page of another host had a browser send."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    host = request.headers.get("host", "")
    is_ours = origin is None or (origin.partition("://")[2].lower() == host.lower() and "://" in origin)
    if not is_ours or site not in ("none", "same-origin"):
        page = one_line(origin or "another host")[:80]
        raise DeniedError(f"a page of {page} may not say what serves here", FORBIDDEN, cause="origin")


def _is_host(host: str) -> bool:
    """Whether a header holds a host and maybe a port, and nothing that is read as something else."""
    if not host or not host.isascii() or any(letter in host for letter in "@/\\?# "):
        return False
    try:
        return urlsplit(f"//{host}").port != 0
    except ValueError:
        return False


def _is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

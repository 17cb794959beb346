"""The routes of the page: who may is decided by `operating.access`, what is done by `operating.actions`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from tersor.deploy.gateway.admission import BusyError
from tersor.deploy.gateway.bodies import read_body
from tersor.deploy.gateway.dashboard.assets import assets
from tersor.deploy.gateway.dashboard.document import confirmation, document, outcome, sign_in
from tersor.deploy.gateway.dashboard.pulse import Look, Pulse, frame
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.operating.access import Access, DeniedError, Viewer
from tersor.deploy.gateway.operating.actions import ACTIONS, Operator, Order
from tersor.deploy.gateway.operating.audit import one_line
from tersor.deploy.gateway.operating.sessions import COOKIE, LIFE_S
from tersor.deploy.gateway.reporting.rendering import page
from tersor.deploy.gateway.reporting.report import deployment_report
from tersor.deploy.running.supervised import RequestError
from tersor.kernels.lazy import LazyModule
from tersor.pages.document import policy
from tersor.pages.markup import Markup, tag

if TYPE_CHECKING:
    from starlette import responses
    from starlette.requests import Request
    from starlette.responses import Response
else:
    responses = LazyModule("starlette.responses", "serve")

__all__ = ["DashboardRoutes"]

OK, SEE_OTHER, UNAVAILABLE = 200, 303, 503
BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 400, 401, 403, 404
FORM_BYTES, MOST_FIELDS = 8192, 8
YEAR_S = 31_536_000
DAYS_BACK = re.compile("0{0,3}[1-9][0-9]{0,3}")
FRAMED = "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
POLICY = f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; {FRAMED}"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: forms would come from the origin "null" then.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Page = Callable[["Request"], Awaitable["Response"]]


class DashboardRoutes:
    """What answers people with browsers; `receive_s` is the time that a form may take to arrive."""

    def __init__(self, operator: Operator, metrics: Metrics, pulse: Pulse, receive_s: float) -> None:
        self._operator, self._metrics, self._pulse, self._receive_s = operator, metrics, pulse, receive_s
        self._writing = asyncio.Lock()

    @property
    def _access(self) -> Access:
        return self._operator.access

    def handlers(self) -> dict[str, Page]:
        """Operation → what answers it."""
        pages = {
            "dashboard": self._page,
            "dashboard_events": self._events,
            "dashboard_static": self._static,
            "dashboard_confirm": self._confirm,
            "dashboard_act": self._act,
            "dashboard_sign_in": self._sign_in,
            "dashboard_sign_out": self._sign_out,
            "report": self._report,
        }
        return {name: self._guarded(page) for name, page in pages.items()}

    def _guarded(self, page: Page) -> Page:
        """Tell errors as a page: who has no key is shown where to give it."""

        async def through(request: Request) -> Response:
            try:
                return await page(request)
            except DeniedError as error:
                self._metrics.refused.labels(error.cause).inc()
                if request.method == "POST":
                    path = request.url.path
                    author = self._access.author(request)
                    await self._operator.refused(author, f"POST {path}", None, str(error))
                if error.status == UNAUTHORIZED:
                    return self._to_sign_in(request, error)
                return self._problem(request, error.status, str(error), error.headers)
            except RequestError as error:
                return self._problem(request, error.status, str(error), error.headers)
            except BusyError as error:
                self._metrics.refused.labels("busy").inc()
                return self._problem(request, UNAVAILABLE, str(error), {"Retry-After": str(error.retry_after)})

        return through

    async def _page(self, request: Request) -> Response:
        viewer = self._access.check_page(request)
        look = await self._pulse.look(is_admin=viewer.is_admin, may_change=bool(viewer.csrf))
        return _html(document("tersor", _header(viewer, look), _main(look), _dialog(), is_live=True))

    async def _report(self, request: Request) -> Response:
        viewer = self._access.check_page(request)
        if not viewer.is_admin:
            raise DeniedError("the report names who did what: it is for keys of an admin", FORBIDDEN, cause="admin")
        days = request.query_params.get("days", "")
        if days and not DAYS_BACK.fullmatch(days):
            raise RequestError("days: a whole number from 1 to 9999", BAD_REQUEST)
        deployment = self._operator.fleet.deployment
        name, back = Path(deployment.record).name.removesuffix(".record.db"), int(days) if days else None
        async with self._writing:  # one at a time: it takes a tenth of a second of a processor
            text = await asyncio.to_thread(lambda: page(deployment_report(deployment, name, time.time(), days=back)))
        # Its own style and script stand in it, under their hashes.
        return _html(text, OK, {"Content-Security-Policy": f"{policy()}; {FRAMED}"})

    async def _events(self, request: Request) -> Response:
        viewer = self._access.check_page(request)

        def is_welcome() -> bool:
            try:
                return self._access.viewer(request) == viewer
            except DeniedError:
                return False

        told = self._pulse.listen(is_welcome, is_admin=viewer.is_admin, may_change=bool(viewer.csrf))
        return responses.StreamingResponse(told, OK, HEADERS, "text/event-stream")

    async def _static(self, request: Request) -> Response:
        asset = assets().get(request.path_params["name"])
        if asset is None:
            return self._problem(request, NOT_FOUND, "no such file")
        headers = {**HEADERS, "Cache-Control": f"public, max-age={YEAR_S}, immutable", "Content-Type": asset.kind}
        return responses.Response(asset.content, OK, headers)

    async def _confirm(self, request: Request) -> Response:
        viewer = self._access.check_page(request)
        if not viewer.csrf:
            raise RequestError("only an admin who signed in may order anything", NOT_FOUND)
        name, model = request.query_params.get("action", ""), request.query_params.get("model")
        action = ACTIONS.get(name)
        known = self._operator.fleet.deployment.models
        if action is None or (model is None) == action.takes_model or (action.takes_model and model not in known):
            raise RequestError("there is no such order", NOT_FOUND)
        return self._answered(request, name, confirmation(name, action.summary, model, viewer))

    async def _act(self, request: Request) -> Response:
        viewer = self._access.check_form(request)
        form = await self._form(request)
        self._access.check_token(viewer, form.get("csrf", ""))
        name, model, why = form.get("action", ""), form.get("model"), one_line(form.get("why", ""))
        if not why:
            raise RequestError("a reason is wanted: it stands in the audit log", BAD_REQUEST)
        order = Order(name, model, why, self._access.author(request))
        heading = f"{name} {model or ''}".strip()
        try:
            told = await self._operator.ordered(order)
        except RequestError as error:
            content = outcome(heading, [str(error)], is_done=False)
            return self._answered(request, heading, content, error.status, error.headers)
        finally:
            self._pulse.wake()
        rest = {key: value for key, value in told.items() if key not in ("action", "result", "model")}
        lines = [f"{key.replace('_', ' ')}: {_shown(value)}" for key, value in rest.items()]
        return self._answered(request, heading, outcome(heading, lines, is_done=True))

    async def _sign_in(self, request: Request) -> Response:
        self._access.check_sign_in(request)
        if not self._access.has_keys:
            return responses.RedirectResponse("/", SEE_OTHER, HEADERS)
        form = await self._form(request)
        key, secret = self._access.sign_in(form.get("key", ""))
        await self._operator.noted(self._access.author_of(request, key), "sign in")
        response = responses.RedirectResponse("/", SEE_OTHER, HEADERS)
        is_secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        response.set_cookie(COOKIE, secret, LIFE_S, path="/", secure=is_secure, httponly=True, samesite="strict")
        return response

    async def _sign_out(self, request: Request) -> Response:
        viewer = self._access.check_form(request)
        if viewer.is_session:
            await self._operator.noted(self._access.author(request), "sign out")
        self._access.sign_out(request)
        response = responses.RedirectResponse("/", SEE_OTHER, HEADERS)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return response

    async def _form(self, request: Request) -> Mapping[str, str]:
        """Return what a form says; RequestError where it is none of ours."""
        body = await read_body(request, FORM_BYTES, self._receive_s)
        try:
            found = parse_qs(
                body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MOST_FIELDS
            )
        except ValueError:
            raise RequestError("this is no form", BAD_REQUEST) from None
        return {name: values[0] for name, values in found.items()}

    def _to_sign_in(self, request: Request, error: DeniedError) -> Response:
        headers = dict(error.headers or {})
        if _is_htmx(request):
            return _html("", error.status, {**headers, "HX-Redirect": "/"})
        return _html(sign_in(str(error) if request.method == "POST" else ""), error.status, headers)

    def _problem(
        self, request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        return self._answered(
            request, "That did not work", outcome("That did not work", [reason], is_done=False), status, headers
        )

    @staticmethod
    def _answered(
        request: Request, title: str, content: Markup, status: int = OK, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return a piece for the dialog, or a page of its own where there is no script."""
        if _is_htmx(request):
            return _html(content, status, headers)
        return _html(document(f"{title} · tersor", tag("main", content, class_="narrow card")), status, headers)


def _html(text: str, status: int = OK, headers: Mapping[str, str] | None = None) -> Response:
    content = text.encode(errors="replace")
    return responses.Response(content, status, {**HEADERS, **(headers or {})}, "text/html; charset=utf-8")


def _is_htmx(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


def _header(viewer: Viewer, look: Look) -> Markup:
    links = [tag("li", tag("a", name, href=f"#m{index}")) for index, name in enumerate(look.models)]
    links += [tag("li", tag("a", "Report", href="/report.html"))] if viewer.is_admin else []
    leave = tag("form", tag("button", "Sign out", type="submit", class_="button"), method="post",
                action="/dashboard/sign-out") if viewer.is_session else None  # fmt: skip
    return tag(
        "header",
        tag("div", tag("h1", "tersor"), tag("div", tag("span", viewer.name, class_="soft"), leave, class_="who"),
            class_="top"),
        tag("p", tag("span", "Snapshot: load the page anew for what is so now.", id="live"), class_="subtitle",
            role="status"),
        tag("nav", tag("ul", *links), aria_label="Models, and the report"),
    )  # fmt: skip


def _main(look: Look) -> Markup:
    return tag("main", frame(look), id="models", tabindex="-1", hx_ext="sse", sse_connect="/dashboard/events")


def _dialog() -> Markup:
    return tag("dialog", tag("div", id="ask-body"), id="ask", aria_labelledby="ask-title")


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)

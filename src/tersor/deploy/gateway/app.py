"""The routes of the gateway, and what every request goes through: key, size, time, admission."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tersor import __version__
from tersor.core.errors import EngineError, SchemeError
from tersor.deploy.config import Deployment
from tersor.deploy.gateway import openai, tensors
from tersor.deploy.gateway.admission import BusyError
from tersor.deploy.gateway.bodies import as_error, as_json, json_of, read_body
from tersor.deploy.gateway.dashboard.pulse import Pulse
from tersor.deploy.gateway.dashboard.routes import DashboardRoutes
from tersor.deploy.gateway.dashboard.watched import Watched
from tersor.deploy.gateway.description.document import description
from tersor.deploy.gateway.description.routes import METHODS, ROUTES, Route
from tersor.deploy.gateway.heads import header
from tersor.deploy.gateway.leaving import stream, while_there
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Reply, Served, TooLateError
from tersor.deploy.gateway.operating.access import Access, DeniedError
from tersor.deploy.gateway.operating.actions import Operator, Order
from tersor.deploy.gateway.operating.audit import Author
from tersor.deploy.gateway.operating.fleet import Fleet
from tersor.deploy.gateway.operating.records import Records
from tersor.deploy.gateway.operating.routes import VERSION, Endpoint, OperatorRoutes
from tersor.deploy.gateway.recording.watch import Watch
from tersor.deploy.gateway.rolling.cohorts import Caller
from tersor.deploy.gateway.rolling.retries import Retries
from tersor.deploy.gateway.rolling.rollouts import Rollouts
from tersor.deploy.gateway.sampled.feedback import Feedback
from tersor.deploy.gateway.sampled.sampling import Sampling
from tersor.deploy.gateway.watching import with_logprobs
from tersor.deploy.running.supervised import Patience, RequestError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette import requests, responses, routing
    from starlette.requests import Request
    from starlette.responses import Response
else:
    requests = LazyModule("starlette.requests", "serve")
    responses = LazyModule("starlette.responses", "serve")
    routing = LazyModule("starlette.routing", "serve")

__all__ = ["Gateway"]

BAD_REQUEST, NOT_FOUND, WRONG_METHOD, UNAVAILABLE, LATE = 400, 404, 405, 503, 504
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asgi:
    """An endpoint as ASGI has them; Starlette's own way looks for exceptions that none of ours raises."""

    endpoint: Endpoint

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self.endpoint(requests.Request(scope, receive, send))
        await response(scope, receive, send)


@dataclass(eq=False)
class Gateway:
    """All that serves one deployment; `app` is what an ASGI server runs.

    read  reads the deployment anew; raises what is wrong with it
    user  who the gateway runs as: the author of what it does by itself, or of orders where there are no keys
    """

    deployment: Deployment
    records: Records
    read: Callable[[], Deployment]
    user: str
    patience: Patience = field(default_factory=Patience)
    metrics: Metrics = field(default_factory=Metrics)
    fleet: Fleet = field(init=False)
    draining: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.deployment, self.records, self.metrics, self.patience)
        self.access = Access(self.deployment.keys, self.user)
        self.rollouts, self.retries = Rollouts(self.fleet), Retries()
        tried = self.rollouts.trials
        self.watch = Watch(
            self.deployment, self.metrics, lambda: self.fleet.models, lambda: [one.served for one in tried.values()]
        )
        self.operator = Operator(self.fleet, self.access, self.read, self.rollouts, self.watch.alarms)
        self.pulse = Pulse(self.fleet, self.rollouts, Watched(self.watch), lambda: self.draining)
        self.watch.reload, self.watch.is_tried = self.hang_up, self.rollouts.is_under_way
        self.sampling = Sampling(self.deployment, self.metrics, lambda: self.fleet.models)
        self.feedback = Feedback(self.metrics.recorder, self.sampling.confidences)
        self._started = int(time.time())
        self._signalled: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold all engines; raises what `Fleet.running` raises."""
        begun = self.fleet.running(Author(self.user, "start"))
        watched = self.watch.running()
        async with begun, self.rollouts.running(), watched as store, self.sampling.running(store), self.pulse.running():
            try:
                yield
            finally:
                for task in self._signalled:
                    task.cancel()
                await asyncio.gather(*self._signalled, return_exceptions=True)

    def hang_up(self) -> None:
        """Reload, as SIGHUP asks; what comes of it is logged."""

        async def reloaded() -> None:
            order = Order("reload", None, "", Author(self.user, "SIGHUP"))
            try:
                told = await self.operator.carry_out(order)
                _log.warning(
                    "reloaded: %s", ", ".join(f"{word} {told[word]}" for word in ("loaded", "kept", "removed"))
                )
            except RequestError as error:
                _log.error("nothing was changed: %s", error)

        if self.fleet.members and not self.draining:
            task = asyncio.get_running_loop().create_task(reloaded(), name="SIGHUP")
            self._signalled.add(task)
            task.add_done_callback(self._signalled.discard)

    @property
    def models(self) -> Mapping[str, Served]:
        """Those that answer."""
        return self.fleet.models

    def app(self) -> routing.Router:
        """Return the routes; engines are started and ended by `running`.

        They are tried in turn: those that have to be fast come first. No middleware: errors are ours to tell, and what
        is left of them uvicorn logs and answers with status 500.
        """
        handlers = self._handlers()
        routes = [
            routing.Route(row.path, _Asgi(self._guarded(handlers[row.operation], row)), methods=[row.method])
            for row in sorted(ROUTES, key=lambda row: row.operation not in ("infer", *openai.OPERATIONS))
        ]
        others = [routing.Route(path, _Asgi(partial(self._wrong_method, path))) for path in METHODS]
        router = routing.Router([*routes, *others])
        router.default = self._nowhere
        return router

    async def _wrong_method(self, path: str, request: Request) -> Response:
        reason = f"{request.scope['path']:.200} takes {' or '.join(METHODS[path])}, not {request.method:.20}"
        return as_error(request, WRONG_METHOD, reason, {"Allow": ", ".join(METHODS[path])})

    async def _nowhere(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await routing.Router().not_found(scope, receive, send)
        request = requests.Request(scope, receive, send)
        reason = f"nothing is at {scope['path']:.200}; /openapi.json lists what there is"
        return await as_error(request, NOT_FOUND, reason)(scope, receive, send)

    def _handlers(self) -> dict[str, Endpoint]:
        """Operation of `ROUTES` → what answers it."""
        operators = OperatorRoutes(self.operator, self._body)
        once = self._once
        pages = DashboardRoutes(self.operator, self.metrics, self.pulse, self.deployment.receive_s)
        return {
            "alive": self._healthz, "ready": self._readyz, "metrics": self._metrics, "description": self._describe,
            "models": self._list, **{name: once(self._openai(name)) for name in openai.OPERATIONS},
            "feedback": self._feedback, "server": self._server, "v2_live": self._live, "v2_ready": self._ready,
            "metadata": self._metadata, "model_ready": self._model_ready, "infer": once(self._infer),
            **operators.handlers(), **pages.handlers(),
        }  # fmt: skip

    # What every request goes through

    def _guarded(self, endpoint: Endpoint, row: Route) -> Endpoint:
        """Let a request through that may ask, and answer errors in the protocol's own form."""

        async def through(request: Request) -> Response:
            try:
                if row.guard == "key":
                    self.access.check(request)
                elif row.guard == "admin":
                    await self._check_admin(request, row)
                return await endpoint(request)
            except DeniedError as error:
                self.metrics.refused.labels(error.cause).inc()
                return as_error(request, error.status, str(error), error.headers)
            except RequestError as error:
                return as_error(request, error.status, str(error), error.headers)
            except BusyError as error:
                self.metrics.refused.labels("busy").inc()
                return as_error(request, UNAVAILABLE, str(error), {"Retry-After": str(error.retry_after)})
            except TooLateError as error:
                return as_error(request, LATE, str(error))
            except EngineError as error:
                return as_error(request, UNAVAILABLE, str(error).split("\n", maxsplit=1)[0], {"Retry-After": "1"})

        return through

    async def _check_admin(self, request: Request, row: Route) -> None:
        try:
            self.access.check_admin(request, needs_json=row.path.startswith("/v1"))
        except DeniedError as error:
            subject = request.path_params.get("model")
            await self.operator.refused(self.access.author(request), f"{row.method} {row.path}", subject, str(error))
            raise

    def _once(self, endpoint: Endpoint) -> Endpoint:
        """Answer what is sent again under the same name as it was answered before."""

        async def answer(request: Request) -> Response:
            name = header(request, "idempotency-key")
            if not name:
                return await endpoint(request)
            body = await self._body(request)
            return await self.retries.once(
                (self.access.author(request).who, name),
                request.url.path.encode() + b"\0" + body,
                lambda: endpoint(request),
                lambda content, headers: responses.Response(content, headers=headers),
            )

        return answer

    async def _body(self, request: Request) -> bytes:
        deployment = self.fleet.deployment
        if not hasattr(request.state, "read"):  # it comes but once
            request.state.read = await read_body(request, deployment.body_bytes, deployment.receive_s)
        found: bytes = request.state.read
        return found

    def _model(self, name: object, *, tensor: bool) -> Served:
        model = self.models.get(name) if isinstance(name, str) else None
        if model is None or model.is_tensor != tensor:
            there = [other for other, one in self.models.items() if one.is_tensor == tensor]
            raise RequestError(f"no model {name!r:.80}; there are {', '.join(there) or 'none'}", NOT_FOUND)
        return model

    # Health

    async def _healthz(self, request: Request) -> Response:
        del request
        return as_json({"status": "alive"})

    async def _readyz(self, request: Request) -> Response:
        del request
        waiting = [name for name, model in self.models.items() if not model.is_ready]
        if self.draining or waiting:
            return as_json({"status": "draining" if self.draining else "not ready", "models": waiting}, UNAVAILABLE)
        return as_json({"status": "ready"})

    async def _metrics(self, request: Request) -> Response:
        del request
        return responses.Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _describe(self, request: Request) -> Response:
        del request
        return as_json(description())

    async def _live(self, request: Request) -> Response:
        del request
        return as_json({"live": True})

    async def _ready(self, request: Request) -> Response:
        del request
        is_ready = not self.draining and all(model.is_ready for model in self.models.values())
        return as_json({"ready": is_ready}, 200 if is_ready else UNAVAILABLE)

    # OpenAI

    async def _list(self, request: Request) -> Response:
        del request
        return as_json(openai.listed(self.models, self._started))

    def _openai(self, operation: str) -> Endpoint:
        async def answer(request: Request) -> Response:
            body = json_of(await self._body(request))
            given = openai.checked(operation, body)
            model = self._model(body["model"] if isinstance(body, dict) and "model" in body else None, tensor=False)
            asked = {"operation": operation, "body": with_logprobs(operation, given)}
            caller = self.access.caller(request, body.get("user") if isinstance(body, dict) else None)
            if given.get("stream"):
                return await self._stream(request, operation, model, asked, given, caller)
            async with while_there(request), self._answered(model, asked, b"", caller) as reply:
                made = await openai.finished(operation, model, reply, given)
                self._remember(made.get("id", ""), model, reply, caller)
                return as_json(made, headers=self._told(model, reply))

        return answer

    async def _stream(  # noqa: PLR0917 (what is known of a request by now)
        self, request: Request, operation: str, model: Served, asked: dict[str, Any], given: Mapping[str, Any],
        caller: Caller,
    ) -> Response:  # fmt: skip
        stack = AsyncExitStack()
        async with while_there(request):
            reply = await stack.enter_async_context(self._answered(model, asked, b"", caller))
        number = openai.number(operation)
        self._remember(number, model, reply, caller)

        async def events() -> AsyncGenerator[bytes, None]:
            async with stack:
                async for event in openai.streamed(operation, model, reply, given, number):
                    yield event

        headers = {**self._told(model, reply), "Cache-Control": "no-store"}
        return stream(events(), model.plan.limits.send_s, headers)

    def _remember(self, number: str, model: Served, reply: Reply, caller: Caller) -> None:
        rollout = self.rollouts.drawing(model, reply, caller)
        self.feedback.remember(number, model.name, reply.variant, held=reply.held, rollout=rollout)

    async def _feedback(self, request: Request) -> Response:
        return as_json(self.feedback.take(json_of(await self._body(request))))

    def _answered(
        self, model: Served, asked: dict[str, Any], payload: bytes, caller: Caller
    ) -> AbstractAsyncContextManager[Reply]:
        try:
            return self.rollouts.answered(model, asked, payload, caller)
        except SchemeError as error:
            raise RequestError(str(error), BAD_REQUEST) from error

    def _told(self, model: Served, reply: Reply) -> dict[str, str]:
        """Count a reply, and return the headers that say who gave it."""
        self.metrics.requests.labels(model.name, reply.variant, "200").inc()
        return {"X-Tersor-Variant": reply.variant, **({"X-Tersor-Fallback": reply.reason} if reply.reason else {})}

    # The Open Inference Protocol

    async def _server(self, request: Request) -> Response:
        del request
        return as_json(
            {"name": "tersor", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}
        )

    def _tensor_model(self, request: Request) -> Served:
        version = request.path_params.get("version", VERSION)
        if version != VERSION:
            raise RequestError(f"no version {version[:40]!r}; there is {VERSION!r}", NOT_FOUND)
        return self._model(request.path_params["model"], tensor=True)

    async def _metadata(self, request: Request) -> Response:
        model = self._tensor_model(request)
        told = {"name": model.name, "versions": [VERSION], "platform": model.facts.get("platform", "")}
        return as_json({**told, "inputs": model.facts.get("inputs", []), "outputs": model.facts.get("outputs", [])})

    async def _model_ready(self, request: Request) -> Response:
        model = self._tensor_model(request)
        return as_json({"name": model.name, "ready": model.is_ready}, 200 if model.is_ready else UNAVAILABLE)

    async def _infer(self, request: Request) -> Response:
        self._tensor_model(request).admission.check_room()
        body = await self._body(request)
        model = self._tensor_model(request)  # only now: while the body came, it may have been replaced
        if not model.facts:  # a remote one that was not there yet
            raise EngineError(f"{model.name}: no engine has said what it takes")
        size_of_json = header(request, "inference-header-content-length") or None
        infer = tensors.parsed(body, size_of_json, model.facts.get("inputs", ()))
        wanted = None if infer.outputs is None else list(infer.outputs)
        asked = {"inputs": infer.inputs, "outputs": wanted}
        caller = self.access.caller(request)
        async with while_there(request), self._answered(model, asked, infer.payload, caller) as reply:
            if not reply.held:
                raise EngineError(f"{model.name}: the engine answered nothing")
            part, payload = reply.held[0]
            self.metrics.together.labels(model.name, reply.variant).observe(part.get("together", 1))
            if infer.number:
                self._remember(infer.number, model, reply, caller)
            body, size = tensors.written(model.name, VERSION, infer, part["outputs"], payload)
            headers = self._told(model, reply)
            if size is None:
                return responses.Response(body, media_type="application/json", headers=headers)
            headers["Inference-Header-Content-Length"] = str(size)
            return responses.Response(body, media_type="application/octet-stream", headers=headers)

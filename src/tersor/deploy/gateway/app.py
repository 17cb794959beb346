"""The routes of the gateway, and what every request goes through: key, size, time, admission."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tersor import __version__
from tersor.core.errors import EngineError
from tersor.deploy.config import Deployment, Key
from tersor.deploy.gateway import openai, tensors
from tersor.deploy.gateway.admission import BusyError, RateLimit
from tersor.deploy.gateway.bodies import json_of, read_body
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Reply, Served, TooLateError
from tersor.deploy.gateway.watching import with_logprobs
from tersor.deploy.running.supervised import Patience, RequestError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette import applications, responses, routing
    from starlette.requests import Request
    from starlette.responses import Response
else:
    applications = LazyModule("starlette.applications", "serve")
    responses = LazyModule("starlette.responses", "serve")
    routing = LazyModule("starlette.routing", "serve")

__all__ = ["Gateway"]

Endpoint = Callable[["Request"], Awaitable["Response"]]
UNAUTHORIZED, NOT_FOUND, TOO_MANY = 401, 404, 429
FAILED, UNAVAILABLE, LATE = 500, 503, 504
KINDS = {
    UNAUTHORIZED: "authentication_error", NOT_FOUND: "not_found_error", TOO_MANY: "rate_limit_error",
    UNAVAILABLE: "overloaded_error", FAILED: "server_error", LATE: "timeout_error",
}  # fmt: skip
"""Status → what OpenAI's protocol calls it; others are an invalid_request_error."""
VERSION = "1"


@dataclass(eq=False)
class Gateway:
    """All that serves one deployment; `app` is what an ASGI server runs."""

    deployment: Deployment
    patience: Patience = field(default_factory=Patience)
    metrics: Metrics = field(default_factory=Metrics)
    models: dict[str, Served] = field(default_factory=dict, init=False)
    draining: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        plans = self.deployment.models.items()
        self.models = {name: Served(name, plan, self.metrics, self.patience) for name, plan in plans}
        self._started = int(time.time())
        self._limits = {key.name: RateLimit(key.per_minute) for key in self.deployment.keys}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold all engines; EngineError where one cannot be loaded."""
        async with AsyncExitStack() as stack:
            for model in self.models.values():
                stack.push_async_callback(model.close)
                await model.start()
            yield

    def app(self) -> applications.Starlette:
        """Return the routes; engines are started and ended by `running`."""

        def route(path: str, endpoint: Endpoint, method: str = "GET") -> routing.Route:
            return routing.Route(path, endpoint, methods=[method])

        model = "/v2/models/{model}"
        routes = [
            route("/healthz", self._healthz),
            route("/readyz", self._readyz),
            route("/metrics", self._metrics),
            route("/v1/models", self._guarded(self._list)),
            *[route(f"/v1/{name}", self._guarded(self._openai(name)), "POST") for name in openai.OPERATIONS],
            route("/v2", self._guarded(self._server)),
            route("/v2/health/live", self._live),
            route("/v2/health/ready", self._ready),
            *[
                one
                for stem in (model, f"{model}/versions/{{version}}")
                for one in (
                    route(stem, self._guarded(self._metadata)),
                    route(f"{stem}/ready", self._guarded(self._model_ready)),
                    route(f"{stem}/infer", self._guarded(self._infer), "POST"),
                )
            ],
            route("/v2/repository/index", self._guarded(self._index), "POST"),
        ]
        return applications.Starlette(routes=routes)

    # What every request goes through

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """Let a request through whose key may ask, and answer errors in the protocol's own form."""

        async def through(request: Request) -> Response:
            try:
                self._admit(request)
                return await endpoint(request)
            except RequestError as error:
                return self._error(request, error.status, str(error), error.headers)
            except BusyError as error:
                self.metrics.refused.labels("busy").inc()
                return self._error(request, UNAVAILABLE, str(error), {"Retry-After": str(error.retry_after)})
            except TooLateError as error:
                return self._error(request, LATE, str(error))
            except EngineError as error:
                return self._error(request, UNAVAILABLE, str(error).split("\n", maxsplit=1)[0], {"Retry-After": "1"})

        return through

    def _admit(self, request: Request) -> None:
        if not self.deployment.keys:
            return
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(secret.strip().encode()).hexdigest()
        # Every key is compared, so that the time tells nothing of which one came near.
        found: list[Key] = [key for key in self.deployment.keys if hmac.compare_digest(key.sha256, given)]
        if scheme.lower() != "bearer" or not found:
            self.metrics.refused.labels("key").inc()
            raise RequestError("a valid API key is wanted: Authorization: Bearer KEY", UNAUTHORIZED)
        wait = self._limits[found[0].name].take()
        if wait:
            self.metrics.refused.labels("rate").inc()
            reason = f"{found[0].name} may ask {found[0].per_minute} times a minute"
            raise RequestError(reason, TOO_MANY, {"Retry-After": str(wait)})

    @staticmethod
    def _error(request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
        if request.url.path.startswith("/v2"):
            return _json({"error": reason}, status, headers)
        kind = KINDS.get(status, "invalid_request_error")
        told = {"error": {"message": reason, "type": kind, "param": None, "code": None}}
        return _json(told, status, headers)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self.deployment.body_bytes, self.deployment.receive_s)

    def _model(self, name: object, *, tensor: bool) -> Served:
        model = self.models.get(name) if isinstance(name, str) else None
        if model is None or model.is_tensor != tensor:
            there = [other for other, one in self.models.items() if one.is_tensor == tensor]
            raise RequestError(f"no model {name!r:.80}; there are {', '.join(there) or 'none'}", NOT_FOUND)
        return model

    # Health

    async def _healthz(self, request: Request) -> Response:
        del request
        return _json({"status": "alive"})

    async def _readyz(self, request: Request) -> Response:
        del request
        waiting = [name for name, model in self.models.items() if not model.is_ready]
        if self.draining or waiting:
            return _json({"status": "draining" if self.draining else "not ready", "models": waiting}, UNAVAILABLE)
        return _json({"status": "ready"})

    async def _metrics(self, request: Request) -> Response:
        del request
        return responses.Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _live(self, request: Request) -> Response:
        del request
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        del request
        is_ready = not self.draining and all(model.is_ready for model in self.models.values())
        return _json({"ready": is_ready}, 200 if is_ready else UNAVAILABLE)

    # OpenAI

    async def _list(self, request: Request) -> Response:
        del request
        return _json(openai.listed(self.models, self._started))

    def _openai(self, operation: str) -> Endpoint:
        async def answer(request: Request) -> Response:
            body = json_of(await self._body(request))
            given = openai.checked(operation, body)
            model = self._model(body["model"] if isinstance(body, dict) and "model" in body else None, tensor=False)
            asked = {"operation": operation, "body": with_logprobs(operation, given)}
            if given.get("stream"):
                return await self._stream(operation, model, asked, given)
            async with model.answered(asked) as reply:
                made = await openai.finished(operation, model, reply, given)
                return _json(made, headers=self._told(model, reply))

        return answer

    async def _stream(self, operation: str, model: Served, asked: dict[str, Any], given: Mapping[str, Any]) -> Response:
        stack = AsyncExitStack()
        reply = await stack.enter_async_context(model.answered(asked))

        async def events() -> AsyncIterator[bytes]:
            async with stack:
                async for event in openai.streamed(operation, model, reply, given):
                    yield event

        headers = {**self._told(model, reply), "Cache-Control": "no-store"}
        return responses.StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _told(self, model: Served, reply: Reply) -> dict[str, str]:
        """Count a reply, and return the headers that say who gave it."""
        self.metrics.requests.labels(model.name, reply.variant, "200").inc()
        return {"X-Tersor-Variant": reply.variant, **({"X-Tersor-Fallback": reply.reason} if reply.reason else {})}

    # The Open Inference Protocol

    async def _server(self, request: Request) -> Response:
        del request
        return _json(
            {"name": "tersor", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}
        )

    def _tensor_model(self, request: Request) -> Served:
        version = request.path_params.get("version", VERSION)
        if version != VERSION:
            raise RequestError(f"no version {version[:40]!r}; there is {VERSION!r}", NOT_FOUND)
        return self._model(request.path_params["model"], tensor=True)

    async def _metadata(self, request: Request) -> Response:
        model = self._tensor_model(request)
        told = {"name": model.name, "versions": [VERSION], "platform": "onnxruntime_onnx"}
        return _json({**told, "inputs": model.facts.get("inputs", []), "outputs": model.facts.get("outputs", [])})

    async def _model_ready(self, request: Request) -> Response:
        model = self._tensor_model(request)
        return _json({"name": model.name, "ready": model.is_ready}, 200 if model.is_ready else UNAVAILABLE)

    async def _index(self, request: Request) -> Response:
        await self._body(request)
        rows = [
            {"name": name, "version": VERSION, "state": "READY" if model.is_ready else "UNAVAILABLE", "reason": ""}
            for name, model in self.models.items()
            if model.is_tensor
        ]
        return _json(rows)

    async def _infer(self, request: Request) -> Response:
        model = self._tensor_model(request)
        header = request.headers.get("inference-header-content-length")
        infer = tensors.parsed(await self._body(request), header, model.facts.get("inputs", ()))
        wanted = None if infer.outputs is None else list(infer.outputs)
        async with model.answered({"inputs": infer.inputs, "outputs": wanted}, infer.payload) as reply:
            if not reply.held:
                raise EngineError(f"{model.name}: the engine answered nothing")
            part, payload = reply.held[0]
            body, size = tensors.written(model.name, VERSION, infer, part["outputs"], payload)
            headers = self._told(model, reply)
            if size is None:
                return responses.Response(body, media_type="application/json", headers=headers)
            headers["Inference-Header-Content-Length"] = str(size)
            return responses.Response(body, media_type="application/octet-stream", headers=headers)


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return responses.Response(text, status, headers, "application/json")

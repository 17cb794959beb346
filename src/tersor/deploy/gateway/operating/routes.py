"""The routes of operators: what they see, what they have done, and the model repository of the Open Inference Protocol.

Source of the latter: Triton's model repository extension.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tersor.deploy.gateway.bodies import as_json, json_of
from tersor.deploy.gateway.operating.actions import Operator, Order
from tersor.deploy.gateway.operating.audit import one_line
from tersor.deploy.gateway.operating.status import status_of
from tersor.deploy.running.supervised import RequestError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette import responses
    from starlette.requests import Request
    from starlette.responses import Response
else:
    responses = LazyModule("starlette.responses", "serve")

__all__ = ["VERSION", "Endpoint", "OperatorRoutes"]

Endpoint = Callable[["Request"], Awaitable["Response"]]
VERSION = "1"
"""Of every model: the one that serves."""
BAD_REQUEST, NOT_FOUND, CONFLICT = 400, 404, 409
ORDER = {"action": str, "model": str, "why": str}


class OperatorRoutes:
    """What answers those operations, most of which only an admin may ask for; `read` reads the body of a request."""

    def __init__(self, operator: Operator, read: Callable[[Request], Awaitable[bytes]]) -> None:
        self._operator, self._read = operator, read

    def handlers(self) -> dict[str, Endpoint]:
        """Operation → what answers it."""
        return {
            "rollout": self._rollout,
            "rollout_model": self._rollout_model,
            "order": self._order,
            "index": self._index,
            "repository_load": self._load,
            "repository_unload": self._unload,
        }

    async def _rollout(self, request: Request) -> Response:
        del request
        return as_json(status_of(self._operator.fleet, self._operator.rollouts))

    async def _rollout_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        models = status_of(self._operator.fleet, self._operator.rollouts)["models"]
        found = next((model for model in models if model["name"] == name), None)
        if found is None:
            there = ", ".join(model["name"] for model in models)
            raise RequestError(f"no model {name!r:.80}; there are {there}", NOT_FOUND)
        return as_json(found)

    async def _order(self, request: Request) -> Response:
        given = json_of(await self._read(request))
        is_order = isinstance(given, dict) and all(
            isinstance(value, ORDER[name]) or (value is None and name != "action")
            for name, value in given.items()
            if name in ORDER
        )
        if not isinstance(given, dict) or not is_order or "action" not in given or not set(given) <= set(ORDER):
            raise RequestError(f"an object with {', '.join(ORDER)} is wanted, all texts", BAD_REQUEST)
        return as_json(await self._carry_out(request, given["action"], given.get("model"), given.get("why") or ""))

    async def _index(self, request: Request) -> Response:
        body = await self._read(request)
        given = json_of(body) if body.strip() else {}
        if not isinstance(given, dict) or not isinstance(given.get("ready", False), bool):
            raise RequestError("the body must be an object, in which 'ready' is true or false", BAD_REQUEST)
        rows = [
            {"name": name, "version": VERSION, **self._state(name)}
            for name, plan in self._operator.fleet.deployment.models.items()
            if plan.is_tensor
        ]
        return as_json([row for row in rows if row["state"] == "READY" or not given.get("ready")])

    def _state(self, name: str) -> dict[str, str]:
        model = self._operator.fleet.models.get(name)
        if model is not None and model.is_ready:
            return {"state": "READY", "reason": ""}
        return {"state": "UNAVAILABLE", "reason": "unloaded" if model is None else "restarting"}

    async def _load(self, request: Request) -> Response:
        await self._check_parameters(request, ())
        await self._in_repository(request, "load")
        return responses.Response(status_code=200)

    async def _unload(self, request: Request) -> Response:
        await self._check_parameters(request, ("unload_dependents",))  # there are none: it is all the same
        await self._in_repository(request, "unload")
        return responses.Response(status_code=200)

    async def _in_repository(self, request: Request, action: str) -> None:
        """Carry out what is about a net; the protocol knows one status for what cannot be: 400."""
        name = request.path_params["model"]
        plan = self._operator.fleet.deployment.models.get(name)
        try:
            if plan is None or not plan.is_tensor:
                raise RequestError(f"no model {name!r:.80} in this repository", BAD_REQUEST)
            await self._carry_out(request, action, name, "model repository")
        except RequestError as error:
            status = BAD_REQUEST if error.status in (NOT_FOUND, CONFLICT) else error.status
            raise RequestError(str(error), status, error.headers) from error

    async def _check_parameters(self, request: Request, known: tuple[str, ...]) -> None:
        body = await self._read(request)
        given = json_of(body) if body.strip() else {}
        parameters = given.get("parameters") or {} if isinstance(given, dict) else None
        if not isinstance(parameters, dict):
            raise RequestError("the body must be an object, in which 'parameters' is one too", BAD_REQUEST)
        odd = sorted(set(parameters) - set(known))
        if odd:
            raise RequestError(
                f"parameter {', '.join(odd)[:200]!r} is not taken: a model is what the deployment says", BAD_REQUEST
            )

    async def _carry_out(self, request: Request, action: str, model: str | None, why: str) -> dict[str, Any]:
        """Have it done; what is refused is written down as well."""
        author = self._operator.access.author(request)
        return await self._operator.ordered(Order(action, model, one_line(why), author))

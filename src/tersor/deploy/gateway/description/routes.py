"""Every route of the gateway: one row each, which it is made from and described by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["METHODS", "ROUTES", "Guard", "Route"]

Guard: TypeAlias = Literal["open", "key", "admin", "page", "form"]
"""Who may: anybody, whoever has a key (anybody on this machine where there are none), who may change what serves.

Pages and forms are for people with browsers, who are asked for a key; they say themselves who may do what.
"""
Method: TypeAlias = Literal["GET", "POST"]
UNREADY, LATE, CONFLICT, NOT_FOUND = 503, 504, 409, 404
ASKED = (NOT_FOUND, UNREADY, LATE)
"""How a question to a model can fail, besides being wrong."""


@dataclass(frozen=True, slots=True)
class Route:
    """A row.

    operation  what answers it: a key of the gateway's handlers
    answer     schema of what it answers with 200; empty: nothing
    body       schema of what it is sent; empty: nothing
    fails      statuses of errors besides those that every body and every guard bring
    """

    method: Method
    path: str
    operation: str
    guard: Guard
    summary: str
    answer: str
    body: str = ""
    fails: tuple[int, ...] = ()


def _versioned(
    method: Method, rest: str, operation: str, summary: str, answer: str, *, body: str = "", fails: tuple[int, ...]
) -> tuple[Route, Route]:
    """Both spellings of a route of one net: with its version, and without."""
    stem, more = "/v2/models/{model}", (answer, body, fails)
    return (
        Route(method, f"{stem}{rest}", operation, "key", summary, *more),
        Route(method, f"{stem}/versions/{{version}}{rest}", operation, "key", summary, *more),
    )


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", "alive", "open", "The gateway lives.", "Health"),
    Route("GET", "/readyz", "ready", "open", "All models answer, and requests are taken.", "Health", fails=(UNREADY,)),
    Route("GET", "/metrics", "metrics", "open", "What is counted, for Prometheus.", "Text"),
    Route("GET", "/openapi.json", "description", "open", "This description.", "Description"),
    Route("GET", "/v1/models", "models", "key", "Language models that can be asked.", "ModelList"),
    Route(
        "POST", "/v1/completions", "completions", "key", "Go on with a text.",
        "Completion", "CompletionRequest", ASKED,
    ),
    Route(
        "POST", "/v1/chat/completions", "chat/completions", "key", "Answer messages.",
        "Completion", "ChatRequest", ASKED,
    ),
    Route(
        "POST", "/v1/embeddings", "embeddings", "key", "Turn texts into vectors.",
        "Embeddings", "EmbeddingsRequest", ASKED,
    ),
    Route(
        "POST", "/v1/feedback", "feedback", "key", "Say whether an answer was right.",
        "Judged", "Feedback", (NOT_FOUND,),
    ),
    Route("GET", "/v2", "server", "key", "What server this is, and what it speaks.", "Server"),
    Route("GET", "/v2/health/live", "v2_live", "open", "The server lives.", "Live"),
    Route("GET", "/v2/health/ready", "v2_ready", "open", "All models answer.", "Ready", fails=(UNREADY,)),
    *_versioned("GET", "", "metadata", "Inputs and outputs of a net.", "Net", fails=(NOT_FOUND,)),
    *_versioned("GET", "/ready", "model_ready", "Whether a net answers.", "NetReady", fails=(NOT_FOUND, UNREADY)),
    *_versioned(
        "POST", "/infer", "infer", "Run a net on tensors.", "InferResponse", body="InferRequest", fails=ASKED
    ),
    Route(
        "POST", "/v2/repository/index", "index", "key", "Nets of the deployment, and how they are.",
        "Index", "IndexRequest",
    ),
    Route(
        "POST", "/v2/repository/models/{model}/load", "repository_load", "admin", "Load a net, or load it anew.",
        "", "RepositoryRequest", (UNREADY,),
    ),
    Route(
        "POST", "/v2/repository/models/{model}/unload", "repository_unload", "admin", "Let a net answer no more.",
        "", "UnloadRequest", (UNREADY,),
    ),
    Route("GET", "/v1/rollout", "rollout", "admin", "All models: who answers, since when, and how.", "Rollout"),
    Route("GET", "/v1/rollout/{model}", "rollout_model", "admin", "The same of one model.", "Member", "", (NOT_FOUND,)),
    Route(
        "POST", "/v1/rollout", "order", "admin", "Have something done: roll back, restore, reload …",
        "Done", "Order", (NOT_FOUND, CONFLICT, UNREADY),
    ),
    Route("GET", "/", "dashboard", "page", "The dashboard.", "Page"),
    Route("GET", "/report.html", "report", "page", "What `tersor report` says of the deployment.", "Page"),
    Route("GET", "/dashboard/events", "dashboard_events", "page", "What changes on it, as events.", "Page"),
    Route("GET", "/dashboard/static/{name}", "dashboard_static", "page", "Its style and scripts.", "Page"),
    Route("GET", "/dashboard/act", "dashboard_confirm", "page", "Ask whether an order is meant.", "Page"),
    Route("POST", "/dashboard/act", "dashboard_act", "form", "Have it done.", "Page"),
    Route("POST", "/dashboard/sign-in", "dashboard_sign_in", "form", "Begin a session with a key.", "Page"),
    Route("POST", "/dashboard/sign-out", "dashboard_sign_out", "form", "End it.", "Page"),
)  # fmt: skip
"""In the order in which they are tried."""

_ANSWERED = {"GET": ("GET", "HEAD"), "POST": ("POST",)}
METHODS = {
    place.path: tuple(method for row in ROUTES if row.path == place.path for method in _ANSWERED[row.method])
    for place in ROUTES
}
"""Path → what it takes; whatever answers GET answers HEAD."""

"""Every route of the gateway: one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["ROUTES", "Guard", "Route"]

Guard: TypeAlias = Literal["open", "key", "admin"]
"""Who may: anybody, whoever has a key (anybody on this machine where there are none), who may change what serves."""


@dataclass(frozen=True, slots=True)
class Route:
    """A row.

    operation  what answers it: a key of the gateway's handlers, and its id in the description
    """

    method: Literal["GET", "POST"]
    path: str
    operation: str
    guard: Guard
    summary: str


def _versioned(method: Literal["GET", "POST"], rest: str, operation: str, summary: str) -> tuple[Route, Route]:
    """Both spellings of a route of one model: with its version, and without."""
    stem = "/v2/models/{model}"
    return (
        Route(method, f"{stem}{rest}", operation, "key", summary),
        Route(method, f"{stem}/versions/{{version}}{rest}", operation, "key", summary),
    )


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", "alive", "open", "The gateway lives."),
    Route("GET", "/readyz", "ready", "open", "All models answer, and requests are taken."),
    Route("GET", "/metrics", "metrics", "open", "What is counted, for Prometheus."),
    Route("GET", "/v1/models", "models", "key", "Language models that can be asked."),
    Route("POST", "/v1/completions", "completions", "key", "Go on with a text."),
    Route("POST", "/v1/chat/completions", "chat/completions", "key", "Answer messages."),
    Route("POST", "/v1/embeddings", "embeddings", "key", "Turn texts into vectors."),
    Route("GET", "/v2", "server", "key", "What server this is, and what it speaks."),
    Route("GET", "/v2/health/live", "v2_live", "open", "The server lives."),
    Route("GET", "/v2/health/ready", "v2_ready", "open", "All models answer."),
    *_versioned("GET", "", "metadata", "Inputs and outputs of a net."),
    *_versioned("GET", "/ready", "model_ready", "Whether a net answers."),
    *_versioned("POST", "/infer", "infer", "Run a net on tensors."),
    Route("POST", "/v2/repository/index", "index", "key", "Nets of the deployment, and how they are."),
    Route("POST", "/v2/repository/models/{model}/load", "repository_load", "admin", "Load a net, or load it anew."),
    Route("POST", "/v2/repository/models/{model}/unload", "repository_unload", "admin", "Let a net answer no more."),
    Route("GET", "/v1/rollout", "rollout", "admin", "All models: who answers, since when, and how they are."),
    Route("GET", "/v1/rollout/{model}", "rollout_model", "admin", "The same of one model."),
    Route("POST", "/v1/rollout", "order", "admin", "Have something done: roll back, restore, reload …"),
)
"""In the order in which they are tried."""

"""`tersor serve`: a deployment answers requests."""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.options.registries import WhoOption, who_or_user
from tersor.deploy.config import Deployment
from tersor.deploy.running.opening import ENGINES, TENSOR_ENGINES
from tersor.deploy.running.remote.remote import REMOTES
from tersor.pipeline.deploy import serve as pipeline

__all__ = ["serve"]


def serve(
    deployment: Annotated[
        Path | None,
        typer.Argument(
            metavar="DEPLOY.YAML",
            help="Models, variants, limits and keys. A variant's engine is, for text, one of "
            f"{', '.join(name for name in ENGINES if name not in TENSOR_ENGINES)}; for tensors, one of "
            f"{', '.join(name for name in ENGINES if name in TENSOR_ENGINES)}. "
            f"{' and '.join(REMOTES)} ask another server.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="N", help="Listen here instead; 0: any free port.")
    ] = None,
    make_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key, print it and the entry for keys, and stop.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Of --make-key: it may also say what serves.")] = False,
    who: WhoOption = None,
) -> None:
    """Serve models: the quantized variant answers, full precision where that one cannot.

    Speaks OpenAI's protocol (/v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models) for language models,
    and the Open Inference Protocol (/v2) with binary tensors for nets. /healthz, /readyz and /metrics tell how it is.
    /v1/rollout shows and changes what serves. SIGHUP reads the deployment anew, without a failed request. SIGTERM ends
    it once every request that it took is answered.

    \b
    Example:
      tersor serve examples/deploy.yaml
      tersor serve --make-key alice
    """
    if make_key is not None:
        secret = secrets.token_urlsafe(32)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        rights = ", admin: true" if admin else ""
        entry = f"{{name: {make_key}, sha256: {digest}, per_minute: 600{rights}}}"
        sys.stdout.write(f"key    {secret}\nentry  - {entry}\n")
        return
    if deployment is None:
        raise typer.BadParameter("a deployment is wanted, or --make-key NAME", param_hint="DEPLOY.YAML")

    def tell(address: str, found: Deployment) -> None:
        models = ", ".join(f"{name} ({plan.primary})" for name, plan in found.models.items())
        sys.stdout.write(f"serving {models} on {address}\n")
        sys.stdout.flush()

    pipeline.serve(deployment, port=port, who=who_or_user(who), tell=tell)

"""`tersor serve` as one call: read a deployment, make what comes with tersor, and answer requests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tersor import reference_model
from tersor.deploy.config import Deployment, ModelPlan, VariantPlan, read_deployment
from tersor.deploy.gateway import process
from tersor.models import load
from tersor.pipeline.quantize import quantize

__all__ = ["serve"]


def serve(path: Path, *, port: int | None = None, tell: Callable[[str, Deployment], None]) -> None:
    """Serve the deployment that `path` describes until a signal says otherwise.

    port  to listen on instead; 0: any that is free
    tell  is told the address and the deployment once all models are ready
    Raises what `read_deployment` raises, EngineError where a model cannot be loaded, MissingError for a taken address.
    """
    deployment = read_deployment(path)
    deployment = deployment if port is None else replace(deployment, port=port)
    with tempfile.TemporaryDirectory(prefix="tersor-serve-") as folder:
        made = {name: _with_files(plan, Path(folder)) for name, plan in deployment.models.items()}
        process.serve(replace(deployment, models=made), lambda address: tell(address, deployment))


def _with_files(plan: ModelPlan, folder: Path) -> ModelPlan:
    """Return a plan in which every variant has a file."""
    return replace(plan, variants={name: _with_file(one, folder) for name, one in plan.variants.items()})


def _with_file(plan: VariantPlan, folder: Path) -> VariantPlan:
    if not plan.embedded:
        return plan
    path = folder / f"embedded-{plan.embedded}.gguf"
    if not path.exists():
        quantize(load(reference_model.PATH), plan.embedded, path, command="tersor serve")
    return replace(plan, path=str(path))

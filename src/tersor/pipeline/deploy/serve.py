"""`tersor serve` as one call: read a deployment, make what comes with tersor, and answer requests."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tersor import reference_model
from tersor.deploy.config import Deployment, ModelPlan, VariantPlan, read_deployment
from tersor.deploy.gateway import process
from tersor.deploy.gateway.app import Gateway
from tersor.deploy.gateway.operating.records import opened
from tersor.models import load
from tersor.pipeline.quantize import quantize

__all__ = ["serve"]

_log = logging.getLogger(__name__)


def serve(path: Path, *, port: int | None = None, who: str, tell: Callable[[str, Deployment], None]) -> None:
    """Serve the deployment that `path` describes until a signal says otherwise.

    port  to listen on instead; 0: any that is free
    who   answers for it, in the registry and in the audit log
    tell  is told the address and the deployment once all models are ready
    Raises what `read_deployment` raises, EngineError where a model cannot be loaded, QualityError and MissingError
    where the registry does not let one serve, MissingError for a taken address.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-serve-") as folder:

        def read() -> Deployment:
            found = read_deployment(path)
            made = {name: _with_files(plan, Path(folder)) for name, plan in found.models.items()}
            return replace(found, models=made, port=found.port if port is None else port)

        deployment = read()
        if not deployment.registry:
            _log.warning("%s names no registry: what serves was not asked for a pass of its gate", path.name)
        with opened(deployment) as records:
            process.serve(Gateway(deployment, records, read, who), lambda address: tell(address, deployment))


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

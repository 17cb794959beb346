"""`tersor serve` as one call: read a deployment, make what comes with tersor, and answer requests."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tersor import reference_model
from tersor.deploy.config import LAYING_OUT, Deployment, ModelPlan, VariantPlan, read_deployment
from tersor.deploy.gateway import process
from tersor.deploy.gateway.app import Gateway
from tersor.deploy.gateway.operating.records import opened
from tersor.evaluation.nets.running.remembered import best_of, remembered
from tersor.models import load
from tersor.pipeline.quantize import quantize

__all__ = ["serve"]

CHOSEN = ("llama.cpp", "onnxruntime", "openvino")
"""Engines here that `tersor optimize` tries too."""
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
            made = {name: _with_files(name, plan, Path(folder)) for name, plan in found.models.items()}
            return replace(found, models=made, port=found.port if port is None else port)

        deployment = read()
        if not deployment.registry:
            _log.warning("%s names no registry: what serves was not asked for a pass of its gate", path.name)
        with opened(deployment) as records:
            process.serve(Gateway(deployment, records, read, who), lambda address: tell(address, deployment))


def _with_files(model: str, plan: ModelPlan, folder: Path) -> ModelPlan:
    """Return a plan in which every variant has a file, and runs as was chosen for it."""
    made = {name: _as_chosen(f"{model}/{name}", _with_file(one, folder)) for name, one in plan.variants.items()}
    return replace(plan, variants=made)


def _with_file(plan: VariantPlan, folder: Path) -> VariantPlan:
    if not plan.embedded:
        return plan
    path = folder / f"embedded-{plan.embedded}.gguf"
    if not path.exists():
        quantize(load(reference_model.PATH), plan.embedded, path, command="tersor serve")
    return replace(plan, path=str(path))


def _as_chosen(where: str, plan: VariantPlan) -> VariantPlan:
    """Return a plan with what its deployment leaves open as `tersor optimize` found it fastest in the same engine.

    Threads that spin or stay on a core of their own are not taken over: they would take it from the gateway and from
    the other variants.
    """
    is_open = plan.threads is None or (plan.layout is None and plan.engine == LAYING_OUT)
    kept = remembered(Path(plan.path)) if is_open and plan.path and plan.engine in CHOSEN else None
    found = None if kept is None else best_of(kept, plan.engine, plan.threads)
    if kept is None or found is None:
        return plan
    made = replace(plan, threads=found.threads)
    if plan.engine == LAYING_OUT and plan.layout is None:
        made = replace(made, layout=found.settings.get("layout", True))
    said = "" if made.layout is None or plan.layout is not None else f", {'' if made.layout else 'no '}layout"
    other = "" if kept.engine == plan.engine else f"; {kept.engine} was faster"
    faster = other if kept.engine in CHOSEN or not other else f"{other}, and serves no ONNX file here"
    # On stderr, where people look for what differs from the file that they wrote.
    _log.warning(
        "%s: %d threads%s, as tersor optimize found on %s%s", where, made.threads, said, kept.date[:10], faster
    )
    return made

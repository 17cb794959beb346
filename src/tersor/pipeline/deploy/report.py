"""`tersor report --deployment` as one call: what a gateway left behind, as a report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from tersor.core.errors import MissingError, SchemeError, TersorError
from tersor.core.records import to_json_text
from tersor.deploy.config import Deployment, read_deployment
from tersor.deploy.gateway.reporting.rendering import markdown, page
from tersor.deploy.gateway.reporting.report import DeploymentReport, deployment_report
from tersor.deploy.registry.registry import Registry
from tersor.files.atomic import atomic_writer

__all__ = ["FORMS", "report_on", "save", "written"]

FORMS = (".html", ".md", ".json")


def report_on(deployment: str | Path, *, registry: Path | None = None, days: int | None = None) -> DeploymentReport:
    """Return the report on a deployment, while its gateway runs or after.

    deployment  its file; or one of the models, by the name that `registry` knows it under
    days        how far it looks back, days of UTC with the one that lasts; None: as far as the record goes

    A name is looked up in the deployments beside the registry and above it. Raises what `read_deployment` raises,
    MissingError where there is neither file nor name, SchemeError for days that are none.
    """
    path, moment = Path(deployment).expanduser(), time.time()
    if path.is_file():
        return deployment_report(read_deployment(path), path.name, moment, days=days)
    name = str(deployment)
    if path.suffix in (".yaml", ".yml") or path.parent != Path():
        raise MissingError(f"{path}: no such deployment")
    if registry is None:
        raise MissingError(f"{name}: no such file; for the name of a deployment give --registry too")
    with Registry.open(registry) as opened:
        names = [row.name for row in opened.deployments()]
    if name not in names:
        raise MissingError(
            f"{registry}: nothing ever served under {name!r:.80}; there are {', '.join(names) or 'none'}"
        )
    found = next((one for one in _beside(registry) if name in one.models), None)
    if found is None:
        raise MissingError(
            f"{name}: no deployment beside {registry} serves it; give the file of the deployment instead"
        )
    return deployment_report(found, name, moment, days=days, only=name)


def _beside(registry: Path) -> Iterator[Deployment]:
    """Deployments that name a registry, in its folder and in that above."""
    folder = registry.resolve()
    for path in sorted([*folder.glob("*.yaml"), *folder.parent.glob("*.yaml")]):
        try:
            made = read_deployment(path)
        except TersorError:  # other YAML, or a deployment that is not whole any more
            continue
        if made.registry and Path(made.registry) == folder:
            yield made


def written(report: DeploymentReport, form: str) -> str:
    """Return a report as text: of the form ".html", ".md" or ".json"; SchemeError for another."""
    if form not in FORMS:
        raise SchemeError(f"a report ends in {', '.join(FORMS)}, not {form or 'nothing'!r}")
    if form == ".json":
        return to_json_text(report.to_object())
    return page(report) if form == ".html" else markdown(report)


def save(report: DeploymentReport, path: Path) -> None:
    """Write a report in the form that the name of the file says; an older one is replaced.

    Raises SchemeError for another name, MissingError where the folder is not there.
    """
    text = written(report, path.suffix.lower())
    with atomic_writer(path) as file:
        file.write(text.encode())

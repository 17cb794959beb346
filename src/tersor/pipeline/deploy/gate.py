"""`tersor gate` as one call: may this artefact serve? Integrity, running, serving, and quality with a margin."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tersor.core import evaluation
from tersor.core.errors import EngineError, FormatError, MissingError, SchemeError
from tersor.deploy.gating.record import GateCheck, GateRecord, Outcome, of_check, of_limit
from tersor.deploy.gating.serving import Bounds, check_serving
from tersor.deploy.registry.manifest import contents_of
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import RegisteredArtefact
from tersor.files.hashing import sha256
from tersor.models import load
from tersor.models.model import Model
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps import provenance
from tersor.pipeline.verify import verify

__all__ = ["MARGIN", "OUTCOMES", "Filed", "gate", "gate_registered", "recorded"]

OUTCOMES: Mapping[Outcome, evaluation.Outcome] = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "inconclusive"}
"""What a gate says → what a registry calls it."""
FULL = "f16"
"""What full precision is served as: no engine on processors is faster in 32 bits."""

MARGIN = 0.05
"""Nats of KL divergence from the baseline that are taken for no worse, where nothing else is said: 8-billion models in
q4_k_m have about 0.02, in q3_k_m 0.05 to 0.1."""


def gate(
    artefact: str | Path,
    *,
    against: str | Path | Model,
    data: str | Path | None = None,
    max_kl: float = MARGIN,
    windows: int | None = 40,
    bounds: Bounds | None = None,
    threads: int = 1,
    command: str = "",
) -> GateRecord:
    """Judge the GGUF `artefact` before it serves; nothing is written.

    against  the full-precision model that it has to be no worse than
    data     a UTF-8 text to compare on; None: held-out text that comes with tersor
    max_kl   the margin, nats: the 95 % interval of the divergence has to lie below it
    windows  of text at most
    bounds   of time and memory; a slowdown is measured against the baseline in 16-bit floats
    Raises MissingError, FormatError and UnsupportedError for an artefact or baseline that cannot be read at all.
    """
    path = Path(artefact).expanduser()
    source = load(against) if isinstance(against, (str, Path)) else against
    verdict = verify(path, against=source, data=None if data is None else Path(data), threads=threads)
    checks = [of_check(check) for check in verdict.checks]
    with tempfile.TemporaryDirectory(prefix="tersor-gate-") as folder:
        full = None if bounds is None or bounds.slowdown is None else _in_full(source, Path(folder))
        checks += check_serving(path, threads=threads, bounds=bounds or Bounds(), full=full)
    checks.append(_quality(path, source, data, max_kl, windows))
    return recorded(path, source.name, checks, command)


def recorded(artefact: Path, baseline: str, checks: Sequence[GateCheck], command: str) -> GateRecord:
    """Return what was found of an artefact, with its hash, today's date and this machine."""
    return GateRecord(
        artefact=artefact.name,
        baseline=baseline,
        files={artefact.name: sha256(artefact)},
        checks=tuple(checks),
        versions=provenance.versions(),
        machine=provenance.machine(),
        date=datetime.now(UTC).date().isoformat(),
        command=command,
    )


@dataclass(frozen=True, slots=True)
class Filed:
    """A verdict that a registry keeps, and the label of the artefact that it is about."""

    record: GateRecord
    label: str


def gate_registered(
    artefact: str | Path,
    *,
    registry: Path,
    who: str,
    judge: Callable[[Path, Path], GateRecord],
    against: str | Path | None = None,
) -> Filed:
    """Judge a registered artefact, and keep the verdict in the registry in this folder.

    artefact  known by its contents, wherever it lies
    judge     is given the artefact and its baseline: `gate` with its options
    against   must be the baseline that it was registered with; None: that
    Raises what `gate` raises, MissingError for an artefact that is not registered, SchemeError for another baseline.
    """
    path = Path(artefact).expanduser()
    with Registry.open(registry, mode="write") as opened:
        row, baseline = _registered(opened, path, registry)
        if against is not None and opened.registered(contents_of(Path(against).expanduser())) != baseline:
            raise SchemeError(
                f"{row.label} is compared with {baseline.label}, and {against} is not that; leave --against away, or "
                f"register {path.name} anew with another --baseline"
            )
        record = judge(path, opened.path(baseline.label))
        if opened.registered(contents_of(path)) != row:
            raise FormatError(f"{path}: was changed while it was judged; judge it anew")
        opened.record_verdict(row.label, OUTCOMES[record.outcome], record.to_object(), who=who)
        return Filed(record, row.label)


def _registered(opened: Registry, path: Path, folder: Path) -> tuple[RegisteredArtefact, RegisteredArtefact]:
    """Return the artefact and the full-precision one that it is compared with."""
    if not path.exists():
        raise MissingError(f"{path}: no such file")
    row = opened.registered(contents_of(path))
    add = f"`tersor registry add {path.name} --name NAME --baseline FULL --registry {folder}`"
    if row is None:
        raise MissingError(f"{path}: the registry {folder} does not know it; register it first: {add}")
    if row.baseline is None:
        raise SchemeError(f"{row.label} was registered without a baseline, so there is nothing to compare: {add}")
    return row, opened.artefact(row.baseline)


def _in_full(source: Model, folder: Path) -> Path:
    """Write the baseline as a GGUF of 16-bit floats, as it would serve in the same engine."""
    path = folder / "full.gguf"
    quantize(source, FULL, path, command="tersor gate")
    return path


def _quality(path: Path, source: Model, data: str | Path | None, max_kl: float, windows: int | None) -> GateCheck:
    """Whether it is no worse than the baseline by more than the margin."""
    try:
        found = evaluate(path, against=source, data=data, max_kl=max_kl, windows=windows, save=False)
    except (EngineError, FormatError, SchemeError) as error:  # a file that the engine refuses has no quality
        return GateCheck("quality", "FAIL", "it cannot be compared", (str(error).split("\n", maxsplit=1)[0],))
    except MissingError as error:
        return GateCheck("quality", "INCONCLUSIVE", str(error))
    check = of_limit(found.limits[0])
    metric = found.metric("kl_mean")
    numbers = dict(check.numbers)
    if metric is not None:
        numbers |= {"kl_mean": metric.value, "low": metric.low or metric.value, "high": metric.high or metric.value}
    return GateCheck("quality", check.outcome, check.detail, check.problems, numbers)

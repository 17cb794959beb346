"""`tersor refresh` as one call: recent traffic → calibrate → quantize as before → gate → registry → a rollout.

Each step is written into the gateway's record. A call that was ended goes on where it was when it is made again: the
traffic that it took lies in a folder beside the record until all is done, what it makes is named by what it is made of.

A model whose candidate is being tried is made anew when that has ended, from what is recent then and as what serves
then: the gateway takes the refresh up. Only on an explicit order does the fresh one take the candidate's place at once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.card import Card, card_path
from tersor.core.errors import FormatError, MissingError, QualityError, SchemeError, TersorError
from tersor.deploy.config import Deployment, ModelPlan, read_deployment
from tersor.deploy.gateway.operating.records import rollouts_of
from tersor.deploy.gateway.recording.queued import Queued, drop_queued, put_queued, read_queued, work_folder
from tersor.deploy.gateway.recording.store import Happening, Store
from tersor.deploy.gateway.rolling.identity import Identities
from tersor.deploy.gateway.rolling.keeping import RolloutFile
from tersor.deploy.gateway.rolling.progress import LIVE
from tersor.deploy.gateway.sampled.kept import arrays_of, kept_path, read_kept, texts_of
from tersor.deploy.gating.record import GateRecord
from tersor.deploy.registry.locking import WriterLock
from tersor.deploy.registry.manifest import contents_of
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.texts import timestamp
from tersor.files.atomic import atomic_writer
from tersor.files.hashing import sha256
from tersor.pipeline.deploy.amending import put_candidate
from tersor.pipeline.deploy.gate import OUTCOMES
from tersor.pipeline.deploy.making import gate_fresh, make_fresh
from tersor.pipeline.deploy.orders import Gateway

__all__ = ["Refreshed", "Step", "Waits", "refresh"]

LEAST = 50
"""Requests without which there is nothing to calibrate with."""
HELD_EVERY = 2
"""Of so many recent requests, one is judged by, not calibrated with: a hundred that agree show 97 %, forty do not."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it is, what came of it, and its numbers, as the record has them."""

    name: str
    detail: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was made.

    artefact  the fresh one
    record    what its gate found
    variant   that the deployment names as the candidate now; empty: none
    state     of the rollout that the gateway has begun; empty: it has begun none
    commands  that are left to give
    """

    model: str
    artefact: Path
    record: GateRecord
    variant: str
    state: str
    commands: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Waits:
    """A refresh that waits until the rollout of a candidate has ended, which stands in a `state` now."""

    model: str
    candidate: str
    state: str


@dataclass(eq=False)
class _Run:
    """One refresh, under way.

    serves    the variant that answers, and is made anew: the primary, or a candidate that was promoted
    replaces  the candidate that the fresh one takes the place of; empty: none
    tried     the state of its rollout, where that is under way
    """

    path: Path
    deployment: Deployment
    name: str
    who: str
    tell: Callable[[Step], None]
    serves: str
    replaces: str = ""
    tried: str = ""
    steps: list[Step] = field(default_factory=list)

    @property
    def plan(self) -> ModelPlan:
        return self.deployment.models[self.name]

    @property
    def present(self) -> Path:
        return Path(self.plan.variants[self.serves].path)

    @property
    def folder(self) -> Path:
        return work_folder(self.deployment.record, self.name)

    def did(self, name: str, detail: str, **numbers: Any) -> None:
        """Write down a step that was taken."""
        step = Step(name, detail, numbers)
        self.steps.append(step)
        store = Store(Path(self.deployment.record))
        try:
            details = {"detail": detail, "who": self.who, **numbers}
            store.happen(Happening(time.time(), f"refresh {name}", self.name, details))
        finally:
            store.close()
        self.tell(step)


def refresh(
    path: str | Path,
    model: str,
    *,
    calibration: str | Path | None = None,
    gateway: Gateway | None = None,
    rolls: bool = True,
    supersedes: bool = False,
    who: str = "",
    tell: Callable[[Step], None] = lambda _step: None,
) -> Refreshed | Waits:
    """Make what serves of a model anew from recent traffic, judge it, and have it tried.

    path         of the deployment
    calibration  the original data, which is merged with the traffic; None: the model's reference, if it has one
    gateway      that serves the deployment, and is told to try the candidate; None: the command is told instead
    rolls        False: stop where the artefact is judged; the deployment stays as it is
    supersedes   True: a fresh one that passes its gate takes the place of a candidate that is being tried; False: it is
                 written down that this is to be done, and the gateway does it when the rollout has ended
    tell         is told each step

    Raises MissingError without enough traffic, a Card or a full-precision artefact, SchemeError for what cannot be made
    anew by itself, QualityError where the gate does not pass it, EngineError where another refresh of the model is
    running, and what quantizing, gates and registries raise.
    """
    place = Path(path)
    deployment = read_deployment(place)
    if model not in deployment.models:
        raise SchemeError(f"{place.name}: no model {model!r:.80}; there are {', '.join(deployment.models)}")
    folder = work_folder(deployment.record, model)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
    except OSError as error:
        raise MissingError(f"{folder}: cannot be made ({error.strerror})") from error
    with WriterLock(folder.with_name(f"{model}.lock"), 0.0, f"refreshing {model}"):
        run = _Run(place, read_deployment(place), model, who, tell, deployment.models[model].primary)
        try:
            _look_at_candidate(run)
            if run.tried and rolls and not supersedes:
                return _queued(run, calibration)
            entry = read_queued(deployment.record, model)
            given = calibration or (entry.calibration if entry is not None else "") or None
            return _refreshed(run, given, gateway, rolls=rolls)
        except TersorError as error:
            run.did("stopped", str(error).split("\n", maxsplit=1)[0])
            drop_queued(deployment.record, model)
            if isinstance(error, QualityError):  # the next one is made of what is recent then
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _look_at_candidate(run: _Run) -> None:
    """See whether another candidate is named than this refresh has named, and what has become of it."""
    candidate, mark = run.plan.candidate, run.folder / "candidate"
    if candidate is None or (mark.is_file() and mark.read_text(encoding="utf-8") == candidate):
        return
    now = RolloutFile(rollouts_of(Path(run.deployment.audit))).read(run.name)
    is_known = now is not None and now.candidate == candidate and now.artefacts == Identities().of(run.plan)
    state = now.state if now is not None and is_known else "created"
    run.replaces, run.tried = candidate, state if state in LIVE else ""
    if state == "promoted":
        run.serves = candidate


def _queued(run: _Run, calibration: str | Path | None) -> Waits:
    """Write down that this is to be done when the rollout has ended; what was asked for last is what is done."""
    data = "" if calibration is None else str(Path(calibration).resolve())
    entry = Queued(run.replaces, run.who, timestamp(datetime.now(UTC)), data)
    put_queued(run.deployment.record, run.name, entry)
    run.did("queued", f"until the rollout of {run.replaces}, now {run.tried}, has ended", candidate=run.replaces)
    return Waits(run.name, run.replaces, run.tried)


def _refreshed(run: _Run, calibration: str | Path | None, gateway: Gateway | None, *, rolls: bool) -> Refreshed:
    full, card = _full(run), _card(run.present)
    recent, held = _traffic(run)
    original = calibration if calibration is not None else run.deployment.monitor.references.get(run.name)
    data = [recent, *([] if original is None else [Path(original)])]
    fresh = run.present.with_name(_fresh_name(run, [full, *data], card))
    if not (fresh.is_file() and card_path(fresh, "json").is_file()):
        make_fresh(full, card, data, fresh)
        run.did("quantized", f"{fresh.name} as {card.plan.recipe.format}", calibration=[one.name for one in data])
    record = _judged(run, fresh, full, held)
    if record.outcome != "PASS":
        raise QualityError(f"{fresh.name}: its gate says {record.outcome}: {_worst(record)}; nothing was changed")
    variant, state = "", ""
    commands: tuple[str, ...] = ()
    if rolls:
        variant = fresh.stem.replace("+", "-")[-64:].lstrip("._-")
        if variant == run.replaces:
            raise SchemeError(f"{variant}: is the candidate already: recent traffic makes nothing else of it")
        _supersede(run, variant, gateway)
        _name_candidate(run, fresh, variant)
        state, commands = _begin(run, gateway)
    shutil.rmtree(run.folder, ignore_errors=True)
    return Refreshed(run.name, fresh, record, variant, state, commands, tuple(run.steps))


def _full(run: _Run) -> Path:
    """Where full precision lies: the registry's baseline of what serves, else the fallback."""
    if not run.present.name:
        raise SchemeError(f"{run.name}: its primary is no artefact on this machine, so it cannot be made anew here")
    if run.deployment.registry:
        with Registry.open(Path(run.deployment.registry)) as opened:
            row = opened.registered(contents_of(run.present))
            if row is not None and row.baseline is not None:
                return opened.path(row.baseline)
    spare = run.plan.variants[run.plan.fallback].path if run.plan.fallback else ""
    if not spare:
        raise MissingError(
            f"{run.name}: nothing of full precision is known to make it from: give it a fallback, or register it with "
            "a --baseline"
        )
    return Path(spare)


def _card(present: Path) -> Card:
    place = card_path(present, "json")
    if not place.is_file():
        raise MissingError(f"{present.name}: has no Card ({place.name}), so nobody knows how it was made")
    return Card.from_json(place.read_text(encoding="utf-8"), place=place.name)


def _traffic(run: _Run) -> tuple[Path, Path]:
    """Return files with recent requests: to calibrate with, and to judge by: an earlier call's if it took some."""
    suffix = ".npz" if run.plan.is_tensor else ".txt"
    recent, held = (run.folder / f"{name}{suffix}" for name in ("recent", "held"))
    if recent.is_file() and held.is_file():
        return recent, held
    kept = read_kept(kept_path(run.deployment.record), run.name)
    run.folder.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
    run.folder.chmod(stat.S_IRWXU)
    if run.plan.is_tensor:
        arrays = arrays_of(kept)
        count = len(next(iter(arrays.values()), ()))
        _check_enough(run, count)
        is_held = np.arange(count) % HELD_EVERY == 0
        for file, mask in ((held, is_held), (recent, ~is_held)):
            with atomic_writer(file) as opened:
                np.savez(opened, **{name: one[mask] for name, one in arrays.items()})
    else:
        texts = list(dict.fromkeys(texts_of(kept)))
        count = len(texts)
        _check_enough(run, count)
        for file, rows in ((held, texts[::HELD_EVERY]), (recent, [t for n, t in enumerate(texts) if n % HELD_EVERY])):
            with atomic_writer(file) as opened:
                opened.write("\n\n".join(rows).encode(errors="replace"))
    for file in (recent, held):
        file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    run.did("began", f"{count} recent requests", requests=count)
    return recent, held


def _check_enough(run: _Run, count: int) -> None:
    if count < LEAST:
        raise MissingError(
            f"{run.name}: {count} recent requests are kept; {LEAST} or more are needed: see `keep` of `monitor`"
        )


def _fresh_name(run: _Run, files: list[Path], card: Card) -> str:
    """A name by all that the artefact is made of, so that the same is not made twice."""
    made = [*(sha256(file) for file in files), json.dumps([card.plan.recipe.format, card.plan.recipe.method])]
    digest = hashlib.sha256("\n".join(made).encode()).hexdigest()[:8]
    return f"{run.name}-{digest}{run.present.suffix}"


def _judged(run: _Run, fresh: Path, full: Path, held: Path) -> GateRecord:
    """Judge the fresh artefact, and let the registry know of both."""
    record = gate_fresh(fresh, full, run.present, held)
    label = ""
    if run.deployment.registry:
        with Registry.open(Path(run.deployment.registry), mode="write") as opened:
            known = opened.registered(contents_of(run.present))
            baseline = opened.registered(contents_of(full))
            if baseline is None:
                raise MissingError(f"{full.name} is in no registry: add it first, as what {run.name} is compared with")
            name = known.name if known is not None else run.name
            row = opened.registered(contents_of(fresh)) or opened.add_artefact(
                name, fresh, who=run.who, baseline=baseline.label
            )
            label = row.label
            opened.record_verdict(label, OUTCOMES[record.outcome], record.to_object(), who=run.who)
    checks = {check.name: check.outcome for check in record.checks}
    run.did("judged", f"{record.outcome}: {_worst(record)}", outcome=record.outcome, checks=checks, registered=label)
    return record


def _worst(record: GateRecord) -> str:
    order = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
    found = min(reversed(record.checks), key=lambda check: order[check.outcome])
    return f"{found.name}: {found.detail}"


def _supersede(run: _Run, variant: str, gateway: Gateway | None) -> None:
    """End the rollout whose candidate loses its place, by an order: a reload would end it without a word."""
    if run.tried not in ("", "created") and gateway is not None:
        gateway.order("abort", run.name, f"superseded by {variant}, a refresh of {run.who}")
        run.did("superseded", f"{run.replaces}, which was {run.tried}", candidate=run.replaces, state=run.tried)


def _name_candidate(run: _Run, fresh: Path, variant: str) -> None:
    present = run.plan.variants[run.serves]
    try:
        there = fresh.resolve().relative_to(run.path.parent.resolve())
    except ValueError as error:
        raise FormatError(f"{fresh}: lies outside of the deployment's folder") from error
    numbers = ("threads", "slots", "context", "max_batch", "max_wait_ms")
    plain = type(present)(engine=present.engine)
    same = {name: getattr(present, name) for name in numbers if getattr(present, name) != getattr(plain, name)}
    (run.folder / "candidate").write_text(variant, encoding="utf-8")
    if run.plan.candidate != variant:
        entry = {"engine": present.engine, "path": there.as_posix(), **same}
        put_candidate(run.path, run.name, variant, entry, primary=run.serves)
        instead = f", in place of {run.replaces}" if run.replaces else ""
        instead = f", and {run.serves}, which was promoted, the primary" if run.serves != run.plan.primary else instead
        run.did("named", f"{variant} is the candidate in {run.path.name}{instead}", variant=variant)


def _begin(run: _Run, gateway: Gateway | None) -> tuple[str, tuple[str, ...]]:
    """Have the gateway read the deployment anew, which begins the rollout; return its state, or what is to be done."""
    url = f"http://{run.deployment.host}:{run.deployment.port}"
    order = '{"action": "reload"}'
    key = ' -H "Authorization: Bearer $KEY"' if run.deployment.keys else ""
    command = f"curl -X POST {url}/v1/rollout -H 'Content-Type: application/json'{key} -d '{order}'"
    if gateway is None:
        return "", (command,)
    gateway.order("reload", None, f"refresh of {run.name}")
    state = gateway.rollout_state(run.name)
    if state in ("", "created"):
        state = gateway.order("start", run.name, "refresh").get("state", "")
    run.did("begun", f"the rollout is {state}", state=state)
    return state, ()

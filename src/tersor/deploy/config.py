"""What `deploy.yaml` says: models, their variants, limits and keys; checked whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.records import read_text, read_yaml
from tersor.deploy.alerting.plan import AUTO, MailPlan, MonitorPlan, Silence
from tersor.deploy.load.exchange import Address
from tersor.deploy.rollout.plan import RolloutPlan, read_plan
from tersor.deploy.running.opening import BATCHING_ENGINES, ENGINES, TENSOR_ENGINES
from tersor.deploy.running.remote.remote import REMOTES

__all__ = ["LAYING_OUT", "Deployment", "Key", "Limits", "ModelPlan", "VariantPlan", "read_deployment"]

T = TypeVar("T")
MAX_BYTES = 1 << 20
MOST_PORT, MOST_BYTES, MOST = 65_535, 1 << 40, (1 << 31) - 1
"""Of numbers in it; engines count in 32 bits."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EMBEDDING = "llama.cpp"
LAYING_OUT = "onnxruntime"
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """One artefact and the engine that runs it, or a model on another server.

    path      the artefact; or else
    embedded  a file type: the model that comes with tersor, rounded to it when serving starts; or else
    url       of a server, and
    model     what the model is called there
    key_env   name of the environment variable that holds the key which that server asks for; empty: none
    connect_s until a connection to it is there
    answer_s  until a whole answer is there, or the next part of a stream
    threads, slots, context, embeddings  of the engine, where it knows them; no threads: what `tersor optimize` chose
                 for the artefact where that holds, else 1
    layout       of ONNX Runtime: weights and images in the order that the processor likes; None as for threads, else so
    max_batch    rows that requests for a net may have together in one call; 1: each request is a call
    max_wait_ms  that the first of them waits for others; 0: it takes those that are there
    """

    engine: str
    path: str = ""
    embedded: str = ""
    threads: int | None = None
    slots: int = 4
    context: int = 2048
    embeddings: bool = False
    layout: bool | None = None
    url: str = ""
    model: str = ""
    key_env: str = ""
    connect_s: float = 5.0
    answer_s: float = 60.0
    max_batch: int = 1
    max_wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one model.

    in_flight   requests that its variant works on at once
    queue       requests that wait for that beyond; more are refused with 503
    deadline_s  until an answer must have begun, waiting included
    send_s      until a client must have taken what is sent of a stream: he holds a place meanwhile
    """

    in_flight: int = 8
    queue: int = 8
    deadline_s: float = 60.0
    send_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A name that clients ask for.

    primary   the variant that answers
    fallback  the one that answers where `primary` cannot: most often full precision; None: nobody
    candidate the one that is tried beside `primary` and may take its place; None: none
    rollout   how it is tried; without a candidate, how the next one would be
    """

    primary: str
    variants: Mapping[str, VariantPlan]
    fallback: str | None = None
    limits: Limits = Limits()
    candidate: str | None = None
    rollout: RolloutPlan = field(default_factory=RolloutPlan)

    @property
    def is_tensor(self) -> bool:
        """Whether it takes tensors, not text."""
        return self.variants[self.primary].engine in TENSOR_ENGINES


@dataclass(frozen=True, slots=True)
class Key:
    """Who may ask: the SHA-256 of the secret, in hexadecimal, and how often in a minute.

    admin  may also say what serves
    """

    name: str
    sha256: str
    per_minute: int = 600
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """All of `deploy.yaml`.

    host, port   where to listen; without keys only a loopback address is taken
    body_bytes   largest request
    receive_s    until the head of a request must have arrived, and then its body
    drain_s      for requests that are being answered when the gateway is told to end
    retire_s     for requests that a variant is still answering after it was replaced
    registry     folder of the registry that every artefact must stand in, with a pass of its gate; empty: none asks
    audit        file that keeps who changed what, where there is no registry; empty: beside the deployment
    record       file that keeps the figures of the last weeks, and alerts; empty: beside the deployment
    monitor      what is usual, whom alerts are told, what is done when inputs drift
    keys         none: everybody may ask
    file         that it was read from
    """

    models: Mapping[str, ModelPlan]
    host: str = "127.0.0.1"
    port: int = 8470
    body_bytes: int = 16 << 20
    receive_s: float = 20.0
    drain_s: float = 30.0
    retire_s: float = 600.0
    registry: str = ""
    audit: str = ""
    record: str = ""
    monitor: MonitorPlan = field(default_factory=lambda: MonitorPlan({}))
    keys: tuple[Key, ...] = field(default=())
    file: str = ""


def read_deployment(path: Path) -> Deployment:
    """Read and check a deployment; paths in it are relative to its folder, and may not leave it.

    Raises MissingError, FormatError for what is no YAML, SchemeError for what cannot be deployed, naming the place.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such deployment")
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes are no deployment")
    given = _top(path.name, read_yaml(read_text(path), str(path)))
    models = {}
    for name, entry in _mapping("models", given.pop("models", None)).items():
        models[_name("models", name)] = _model(f"models.{name}", entry, path.parent)
    if not models:
        raise SchemeError(f"{path}: names no models")
    listed = given.pop("keys", ())
    if not isinstance(listed, list | tuple):
        raise SchemeError("keys: a list of name, sha256 and per_minute")
    keys = tuple(_filled(f"keys[{number}]", Key, entry) for number, entry in enumerate(listed))
    for key in keys:
        if not SHA256.fullmatch(key.sha256):
            raise SchemeError(f"keys: {key.name!r} needs the SHA-256 of its secret in 64 hexadecimal digits")
    if len({key.name for key in keys}) < len(keys) or not all(key.name.isprintable() and key.name for key in keys):
        raise SchemeError("keys: each needs a printable name of its own")
    monitor = _monitor(given.pop("monitor", None) or {}, models, path.parent)
    made = _filled(path.name, Deployment, {**given, "models": models, "keys": keys, "monitor": monitor})
    if made.registry:
        made = replace(made, registry=str(_inside("registry", made.registry, path.parent)))
    audit = _inside("audit", made.audit or f"{path.stem}.audit.jsonl", path.parent, must_exist=False)
    record = _inside("record", made.record or f"{path.stem}.record.db", path.parent, must_exist=False)
    made = replace(made, audit=str(audit), record=str(record), file=str(path.resolve()))
    if made.host not in ("127.0.0.1", "::1", "localhost") and not made.keys:
        raise SchemeError(f"host {made.host} is open to others: give keys, or listen on 127.0.0.1")
    return made


def _top(place: str, found: object) -> dict[str, Any]:
    given = _mapping(place, found)
    if "file" in given:  # it is known, and not said
        raise SchemeError(f"{place}: unknown file")
    return given


def _monitor(entry: object, models: Mapping[str, ModelPlan], folder: Path) -> MonitorPlan:
    """Check what is said of the watch; files of references are whole paths then."""
    given, place = _mapping("monitor", entry), "monitor"
    references = {}
    for name, file in _mapping(f"{place}.references", given.get("references") or {}).items():
        if name not in models or not isinstance(file, str):
            raise SchemeError(f"{place}.references.{name}: one of the models and a file are wanted")
        references[name] = str(_inside(f"{place}.references.{name}", file, folder))
    confidence = _mapping(f"{place}.confidence", given.get("confidence") or {})
    for name in confidence:
        if name not in models or not models[name].is_tensor:
            raise SchemeError(f"{place}.confidence.{name}: one of the nets of this deployment is wanted")
    if given.get("refresh") == AUTO:
        given["refresh"] = [AUTO]
    for name in ("silences", "refresh"):
        if not isinstance(given.get(name, []), list):
            raise SchemeError(f"{place}.{name}: a list is wanted, not {given[name]!r:.60}")
    silences = tuple(_silence(f"{place}.silences[{n}]", one) for n, one in enumerate(given.get("silences", [])))
    mail = given.get("mail")
    if mail is not None:
        mail = _mapping(f"{place}.mail", mail)
        to = mail.get("to", [])
        mail = _filled(f"{place}.mail", MailPlan, {**mail, "to": tuple(to) if isinstance(to, list) else (to,)})
    whole = {**given, "references": references, "silences": silences, "mail": mail, "confidence": confidence}
    whole["limits"] = _mapping(f"{place}.limits", given.get("limits") or {})
    return _filled(place, MonitorPlan, {**whole, "refresh": tuple(given.get("refresh", []))})


def _silence(place: str, entry: object) -> Silence:
    given = _mapping(place, entry)
    if isinstance(given.get("until"), date):  # YAML makes one of what looks like it
        given["until"] = given["until"].isoformat()
    return _filled(place, Silence, given)


def _model(place: str, entry: object, folder: Path) -> ModelPlan:
    given = _mapping(place, entry)
    variants = {}
    for name, one in _mapping(f"{place}.variants", given.get("variants")).items():
        where = f"{place}.variants.{name}"
        plan = _filled(where, VariantPlan, one)
        variants[_name(place, name)] = _variant(where, plan, folder)
    if len({plan.engine in TENSOR_ENGINES for plan in variants.values()}) > 1:
        raise SchemeError(f"{place}.variants: some take text and others tensors; that is two models")
    limits = _filled(f"{place}.limits", Limits, given.get("limits") or {})
    rollout = read_plan(f"{place}.rollout", _mapping(f"{place}.rollout", given.get("rollout") or {}))
    made = _filled(place, ModelPlan, {**given, "variants": variants, "limits": limits, "rollout": rollout})
    others = {"fallback": made.fallback, "candidate": made.candidate}
    roles = {"primary": made.primary} | {role: one for role, one in others.items() if one is not None}
    for role, wanted in roles.items():
        if wanted not in variants:
            raise SchemeError(f"{place}.{role}: no variant {wanted!r}; there are {', '.join(variants) or 'none'}")
    if made.fallback == made.primary:
        raise SchemeError(f"{place}.fallback: the same variant as primary")
    if made.candidate is not None and made.candidate in (made.primary, made.fallback):
        raise SchemeError(f"{place}.candidate: the same variant as primary or fallback")
    return made


def _variant(where: str, plan: VariantPlan, folder: Path) -> VariantPlan:
    """Check that a variant has what its engine needs; its path is whole then."""
    if plan.engine not in ENGINES:
        raise SchemeError(f"{where}: no engine {plan.engine!r}; there are {', '.join(ENGINES)}")
    if plan.max_batch > 1 and plan.engine not in BATCHING_ENGINES:
        raise SchemeError(f"{where}.max_batch: for {', '.join(BATCHING_ENGINES)}; engine {plan.engine} makes its own")
    if plan.max_wait_ms and plan.max_batch == 1:
        raise SchemeError(f"{where}.max_wait_ms: without max_batch nothing is waited for")
    if plan.layout is not None and plan.engine != LAYING_OUT:
        raise SchemeError(f"{where}.layout: for {LAYING_OUT} alone")
    given = [name for name in ("path", "embedded", "url", "model", "key_env") if getattr(plan, name)]
    if plan.engine in REMOTES:
        if not {"url", "model"} <= set(given) or {"path", "embedded"} & set(given):
            raise SchemeError(f"{where}: engine {plan.engine} needs url and model, and no artefact; given {given}")
        try:
            Address.parse(plan.url)
        except SchemeError as error:
            raise SchemeError(f"{where}.url: {error}") from error
        if plan.key_env and not VARIABLE.fullmatch(plan.key_env):
            raise SchemeError(f"{where}.key_env: the name of an environment variable is wanted, and never a key itself")
        return plan
    if {"url", "model", "key_env"} & set(given):
        raise SchemeError(
            f"{where}: engine {plan.engine} runs here; url, model and key_env are for {', '.join(REMOTES)}"
        )
    if plan.embedded and plan.engine != EMBEDDING:
        raise SchemeError(f"{where}.embedded: the model that comes with tersor is a GGUF then, for {EMBEDDING} alone")
    return plan if plan.embedded else replace(plan, path=_artefact(where, plan, folder))


def _artefact(where: str, plan: VariantPlan, folder: Path) -> str:
    """The whole path of an artefact."""
    if not plan.path:
        raise SchemeError(f"{where}: the path of an artefact is wanted")
    return str(_inside(where, plan.path, folder))


def _inside(where: str, path: str, folder: Path, *, must_exist: bool = True) -> Path:
    """The whole path of what lies in the deployment's folder, links followed."""
    try:
        place = (folder / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingError(f"{where}: {path!r:.200} cannot be followed ({error})") from error
    if folder.resolve() not in (place, *place.parents):
        raise SchemeError(f"{where}: {path} lies outside of the deployment's folder")
    if must_exist and not place.exists():
        raise MissingError(f"{where}: {path} is not there")
    return place


def _filled(place: str, kind: type[T], entry: object) -> T:
    """Make a record of a mapping, every value of the type that the field has."""
    given = _mapping(place, entry)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]  # dataclasses all
    odd = sorted(set(given) - set(known))
    if odd:
        raise SchemeError(f"{place}: unknown {', '.join(odd)}; there are {', '.join(known)}")
    for name, value in given.items():
        wanted = str(known[name].type)
        if value is None and wanted.endswith(" | None"):
            continue
        wanted = wanted.removesuffix(" | None")
        most = MOST_PORT if name == "port" else MOST_BYTES if name.endswith("_bytes") else MOST
        if wanted == "int" and (type(value) is not int or not 1 <= value <= most):
            raise SchemeError(f"{place}.{name}: a whole number from 1 to {most}, not {value!r:.40}")
        if wanted == "float" and (type(value) not in (int, float) or not 0 < value < 1e6):
            unit = "milliseconds" if name.endswith("_ms") else "seconds"
            raise SchemeError(f"{place}.{name}: {unit} above 0, not {value!r}")
        if wanted == "Percent" and (type(value) not in (int, float) or not 0 <= value <= 100):
            raise SchemeError(f"{place}.{name}: a share of requests, percent, 0 to 100, not {value!r}")
        if wanted == "bool" and type(value) is not bool:
            raise SchemeError(f"{place}.{name}: true or false, not {value!r}")
        if wanted == "str" and not isinstance(value, str):
            raise SchemeError(f"{place}.{name}: a text, not {value!r}")
    try:
        return kind(**given)
    except TypeError as error:
        raise SchemeError(f"{place}: {str(error).partition(') ')[2] or error}") from error


def _mapping(place: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SchemeError(f"{place}: names with values are wanted, not {value!r:.80}")
    return dict(value)


def _name(place: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise SchemeError(f"{place}: {value!r} is no name: letters, digits, '.', '_' and '-', 64 at most")
    return value

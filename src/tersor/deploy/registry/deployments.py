"""What serves under which name: the moves of `transitions`, checked and committed one by one."""

from __future__ import annotations

from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.records import plain
from tersor.deploy.registry import transitions
from tersor.deploy.registry.catalogue import differences_of, find
from tersor.deploy.registry.gate import check_may_serve
from tersor.deploy.registry.ledger import Ledger, label_of
from tersor.deploy.registry.rows import Deployment, Interval, RegisteredArtefact, State
from tersor.deploy.registry.texts import checked_name, checked_text

__all__ = ["all_deployments", "current", "deploy", "history", "roll_back_to", "rollback", "shift", "undeploy"]

_SELECT = f"""SELECT t.id, t.name, t.action, t.state, {label_of("a", "artefact")}, {label_of("f", "fallback")},
    {label_of("c", "candidate")}, t.weight, t.before, t.since, t.who, t.why FROM {{}} t
    JOIN artefacts a ON a.id = t.artefact LEFT JOIN artefacts f ON f.id = t.fallback
    LEFT JOIN artefacts c ON c.id = t.candidate"""  # noqa: S608  # names from our own code
_TRANSITIONS, _DEPLOYMENTS = _SELECT.format("transitions"), _SELECT.format("deployments")


def deploy(
    ledger: Ledger, name: str, artefact: str, fallback: str | None, *, who: str, why: str, is_hashed: bool
) -> Deployment:
    """Let an artefact serve alone, once every byte of it and of its fallback is what was registered."""
    checked_name(name, "a deployment")
    row = find(ledger, artefact)
    spare = _fallback(ledger, row, fallback)
    for each in () if is_hashed else (row, *([spare] if spare else [])):
        _check_files(ledger, each, is_hashed=True)
    with ledger.database.writing(is_decision=True):
        check_may_serve(ledger, row)
        now = current(ledger, name)
        move = transitions.deployed(now, row.label, spare.label if spare else None)
        return _commit(ledger, name, now, move, who=who, why=why)


def shift(ledger: Ledger, name: str, candidate: str, state: State, weight: float, *, who: str, why: str) -> Deployment:
    """Put a candidate beside the primary; it may answer requests only where it may serve."""
    row = find(ledger, candidate)
    now = current(ledger, name)
    if now is None or now.candidate != row.label:  # read once: every step of a canary need not hash it again
        _check_files(ledger, row, is_hashed=True)
    with ledger.database.writing(is_decision=True):
        if weight:
            check_may_serve(ledger, row)
        now = current(ledger, name)
        return _commit(ledger, name, now, transitions.shifted(now, name, state, row.label, weight), who=who, why=why)


def rollback(ledger: Ledger, name: str, *, leaving: str | None, who: str, why: str) -> Deployment:
    """Go back to what served before; its files are looked for, but not read again: time matters now."""
    label = None if leaving is None else find(ledger, leaving).label
    with ledger.database.writing(is_decision=True):
        now = current(ledger, name)
        move = transitions.rolled_back(now, _target(ledger, now), name, label)
        row = find(ledger, move.artefact)
        _check_files(ledger, row, is_hashed=False)
        check_may_serve(ledger, row)
        return _commit(ledger, name, now, move, who=who, why=why)


def roll_back_to(ledger: Ledger, name: str, artefact: str, *, who: str, why: str) -> Deployment:
    """Let an artefact that stands by already answer alone: nothing is read, for it is loaded."""
    with ledger.database.writing(is_decision=True):
        row = find(ledger, artefact)
        check_may_serve(ledger, row)
        now = current(ledger, name)
        return _commit(ledger, name, now, transitions.rolled_back_to(now, name, row.label), who=who, why=why)


def undeploy(ledger: Ledger, name: str, *, who: str, why: str) -> Deployment:
    """Let nothing serve."""
    with ledger.database.writing(is_decision=True):
        now = current(ledger, name)
        return _commit(ledger, name, now, transitions.stopped(now, name), who=who, why=why)


def current(ledger: Ledger, name: str) -> Deployment | None:
    """Return what the last transition of a name made of it, None where there was none."""
    checked_name(name, "a deployment")
    rows = ledger.found(Deployment, f"{_TRANSITIONS} WHERE t.name = ? ORDER BY t.id DESC LIMIT 1", name)
    return rows[0] if rows else None


def all_deployments(ledger: Ledger) -> tuple[Deployment, ...]:
    """Return the last transition of every name, by name."""
    return ledger.found(Deployment, f"{_DEPLOYMENTS} ORDER BY t.name")


def history(ledger: Ledger, name: str) -> tuple[Interval, ...]:
    """Return what served under a name and when, the oldest first; MissingError where nothing ever did."""
    checked_name(name, "a deployment")
    rows = ledger.found(Deployment, f"{_TRANSITIONS} WHERE t.name = ? ORDER BY t.id", name)
    if not rows:
        raise MissingError(f"{ledger.database.folder}: nothing was ever deployed as {name!r:.150}")
    return transitions.intervals(rows)


def _commit(
    ledger: Ledger, name: str, now: Deployment | None, move: transitions.Move | None, *, who: str, why: str
) -> Deployment:
    """Add a transition and its line of the log; no move leaves everything as it is."""
    if move is None:
        assert now is not None  # only a deployment can be as it should be
        return now
    who, why = checked_text(who, "who"), checked_text(why, "why") if why else ""
    since = ledger.log(move.action, name, who, {**plain(move), "why": why})
    ids = {
        part: None if label is None else find(ledger, label).id
        for part, label in (("artefact", move.artefact), ("fallback", move.fallback), ("candidate", move.candidate))
    }
    made = ledger.database.insert(
        "transitions", name=name, action=move.action, state=move.state, weight=move.weight, before=move.before,
        since=since, who=who, why=why, **ids,
    )  # fmt: skip
    return _transition(ledger, made)


def _target(ledger: Ledger, now: Deployment | None) -> Deployment | None:
    """Return the deployment that a rollback leads to: the last one that differs from what serves now."""
    target = now
    while target is not None and now is not None:
        target = None if target.before is None else _transition(ledger, target.before)
        if target is not None and transitions.differs(target, now):
            return target
    return None


def _transition(ledger: Ledger, number: int) -> Deployment:
    rows = ledger.found(Deployment, f"{_TRANSITIONS} WHERE t.id = ?", number)
    if not rows:
        raise FormatError(f"{ledger.database.folder}: transition {number} is not there; go back to a copy")
    return rows[0]


def _fallback(ledger: Ledger, row: RegisteredArtefact, fallback: str | None) -> RegisteredArtefact | None:
    """Return the artefact that answers where `row` may not: as given, else its baseline; given as empty: none."""
    label = row.baseline if fallback is None else fallback
    if not label:
        return None
    spare = find(ledger, label)
    if spare.baseline is not None:
        raise SchemeError(f"{spare.label} is compared with {spare.baseline}, so it is no fallback of full precision")
    return spare


def _check_files(ledger: Ledger, row: RegisteredArtefact, *, is_hashed: bool) -> None:
    found = differences_of(ledger, row, is_hashed=is_hashed)
    if found:
        rest = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise FormatError(
            f"{row.label} may not serve: {found[0].path}: {found[0].problem}{rest}; put the registered files back, or "
            "register what is there as a new version"
        )

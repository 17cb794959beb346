"""Whether an artefact may serve: what its gate found last, and who answers for it where that is not a pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.core.errors import QualityError, SchemeError
from tersor.core.evaluation import Outcome
from tersor.deploy.registry.ledger import Ledger, label_of
from tersor.deploy.registry.rows import GateVerdict, Override, RegisteredArtefact
from tersor.deploy.registry.texts import checked_text, document_text

__all__ = ["check_may_serve", "objection", "overrides_of", "record_override", "record_verdict", "verdicts_of"]

OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "inconclusive")

_FOUND = {"fail": "it failed its gate", "inconclusive": "its gate was inconclusive"}
_VERDICTS = f"""SELECT v.id, {label_of("a", "artefact")}, v.at, v.who, v.outcome, v.document
    FROM verdicts v JOIN artefacts a ON a.id = v.artefact WHERE a.id = ? ORDER BY v.id"""  # noqa: S608  # names from our own code
_OVERRIDES = f"""SELECT o.id, {label_of("a", "artefact")}, o.verdict, o.at, o.who, o.why
    FROM overrides o JOIN artefacts a ON a.id = o.artefact WHERE a.id = ? ORDER BY o.id"""  # noqa: S608  # names from our own code


def objection(
    artefact: RegisteredArtefact, verdicts: tuple[GateVerdict, ...], overrides: tuple[Override, ...]
) -> str | None:
    """Return why an artefact may not serve, None where it may; the last verdict counts.

    An artefact without a baseline has nothing to be compared with: it may serve unless a gate found against it. An
    override counts only for the verdict that it was given for.
    """
    last = verdicts[-1] if verdicts else None
    if last is None and artefact.baseline is None:
        return None
    if last is not None and last.outcome == "pass":
        return None
    if any(override.verdict == (last.id if last else None) for override in overrides):
        return None
    if last is None:
        return f"no gate has compared it with {artefact.baseline} yet"
    return f"{_FOUND[last.outcome]} on {last.at} ({last.who})"


def check_may_serve(ledger: Ledger, row: RegisteredArtefact) -> None:
    """Raise QualityError where an artefact may not serve, saying why and what would let it."""
    reason = objection(row, verdicts_of(ledger, row), overrides_of(ledger, row))
    if reason is not None:
        raise QualityError(
            f"{row.label} may not serve: {reason}; judge it anew, or answer for it with "
            f"`tersor registry override {row.label} --why …`"
        )


def record_verdict(
    ledger: Ledger, row: RegisteredArtefact, outcome: Outcome, document: Mapping[str, Any], who: str
) -> GateVerdict:
    """Keep what a gate found."""
    if outcome not in OUTCOMES:
        raise SchemeError(f"{outcome!r:.30} is no verdict; {', '.join(OUTCOMES)} are")
    text, who = document_text(document, "verdict"), checked_text(who, "who")
    with ledger.database.writing(is_decision=True):
        at = ledger.log("verdict", row.label, who, {"outcome": outcome})
        ledger.database.insert("verdicts", artefact=row.id, at=at, who=who, outcome=outcome, document=text)
        return verdicts_of(ledger, row)[-1]


def record_override(ledger: Ledger, row: RegisteredArtefact, who: str, why: str) -> Override:
    """Answer for an artefact that has not passed: for its last verdict, or for there being none."""
    who, why = checked_text(who, "who"), checked_text(why, "why")
    with ledger.database.writing(is_decision=True):
        verdicts = verdicts_of(ledger, row)
        if objection(row, verdicts, ()) is None:
            raise SchemeError(f"{row.label} may serve as it is: there is nothing to override")
        at = ledger.log("override", row.label, who, {"why": why})
        verdict = verdicts[-1].id if verdicts else None
        ledger.database.insert("overrides", artefact=row.id, verdict=verdict, at=at, who=who, why=why)
        return overrides_of(ledger, row)[-1]


def verdicts_of(ledger: Ledger, row: RegisteredArtefact) -> tuple[GateVerdict, ...]:
    """Return every verdict on an artefact, the last one last."""
    return ledger.found(GateVerdict, _VERDICTS, row.id, document="document")


def overrides_of(ledger: Ledger, row: RegisteredArtefact) -> tuple[Override, ...]:
    """Return every override of an artefact, the last one last."""
    return ledger.found(Override, _OVERRIDES, row.id)

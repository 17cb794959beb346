"""The state of tests as plain JSON and back: what a decision's row keeps, and what goes on after a restart.

Numbers return to the last bit, so that the same requests give the same decision again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from tersor.core.errors import FormatError
from tersor.core.records import plain, read_record
from tersor.deploy.rollout.sequential.agreement import Agreement
from tersor.deploy.rollout.sequential.errors import ErrorRate
from tersor.deploy.rollout.sequential.latency import Latency
from tersor.deploy.rollout.sequential.quality import Quality

__all__ = ["TESTS", "AnyTest", "restored", "stored"]

AnyTest: TypeAlias = Agreement | ErrorRate | Latency | Quality

TESTS: Mapping[str, type[AnyTest]] = {
    "agreement": Agreement,
    "error_rate": ErrorRate,
    "latency": Latency,
    "quality": Quality,
}
KINDS = {kind: name for name, kind in TESTS.items()}


def stored(tests: Mapping[str, AnyTest]) -> dict[str, Any]:
    """Return name → {"test": kind, "state": …} of tests by name, as JSON can hold it.

    >>> restored(stored({"top-1": Agreement.begin()}))["top-1"] == Agreement.begin()
    True
    """
    return {name: {"test": KINDS[type(test)], "state": plain(test)} for name, test in tests.items()}


def restored(document: object, place: str = "tests") -> dict[str, AnyTest]:
    """Return the tests that `stored` made `document` of; FormatError or SchemeError names what is wrong in it."""
    if not isinstance(document, dict):
        raise FormatError(f"{place}: an object is needed, got {type(document).__name__}")
    found: dict[str, AnyTest] = {}
    for name, entry in document.items():
        here = f"{place}: {name!r:.60}"
        if not isinstance(entry, dict) or set(entry) != {"test", "state"}:
            raise FormatError(f"{here}: an object with the keys test and state is needed")
        kind = TESTS.get(entry["test"]) if isinstance(entry["test"], str) else None
        if kind is None:
            raise FormatError(f"{here}: no test is called {entry['test']!r:.60}; {', '.join(TESTS)} are")
        found[name] = read_record(kind, entry["state"], here)
    return found

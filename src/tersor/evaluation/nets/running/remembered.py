"""What `tersor optimize` chose for an artefact, where it still holds: for these bytes, this machine, these releases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tersor.core.errors import FormatError
from tersor.core.records import read_text
from tersor.evaluation.nets.running.choices import Choice, Choices, Tried, choices_path
from tersor.evaluation.nets.running.engines import NET_ENGINES, Way, installed
from tersor.evaluation.nets.running.race import Sizes
from tersor.files.hashing import sha256
from tersor.targets.processor import Processor, processor

__all__ = ["best_of", "fingerprint", "is_current", "read_choices", "releases", "remembered", "told", "way_of"]

LLAMA = "llama.cpp"
MAX_BYTES = 1 << 24
MOST_THREADS = 1024
_log = logging.getLogger(__name__)


def remembered(artefact: Path, sizes: Sizes | None = None) -> Choice | None:
    """Return the choice that lies beside `artefact` and holds here and now; None where there is none.

    sizes  of free axes that it must have been measured with; None: of several the smallest
    A file that cannot be read is passed over with a warning: whoever runs an artefact did not ask for it. The artefact
    is hashed only where such a file lies beside it.
    """
    place = choices_path(artefact)
    try:
        known = read_choices(place).choices
    except (FormatError, OSError) as error:
        _log.warning("%s is passed over: %s", place.name, error)
        return None
    if not known or not artefact.is_file():
        return None
    here = sha256(artefact), fingerprint(processor())
    wanted = None if sizes is None else (sizes.batch, sizes.length)
    fitting = [
        one
        for one in known
        if (one.artefact_sha256, one.machine) == here
        and wanted in (None, (one.batch, one.length))
        and _is_sound(one)
        and is_current(one)
    ]
    return min(fitting, key=lambda one: (one.batch, one.length), default=None)


def best_of(choice: Choice, engine: str, threads: int | None = None) -> Tried | None:
    """Return the fastest way that was tried in one engine, with so many threads where that is said; None without."""
    fitting = [
        row
        for row in choice.tried
        if row.engine == engine and row.is_usable and threads in (None, row.threads) and _is_sound(row)
    ]
    return min(fitting, key=lambda row: row.best_ms or 0.0, default=None)


def way_of(choice: Choice) -> Way:
    """Return how the artefact is run."""
    return Way(choice.engine, choice.threads, choice.settings)


def told(choice: Choice) -> str:
    """Say what was chosen and when, for people."""
    return f"{way_of(choice)}: as `tersor optimize` chose on {choice.date[:10]}"


def read_choices(path: Path) -> Choices:
    """Read a file of choices, nothing where there is none; FormatError where it is something else."""
    if not path.is_file():
        return Choices()
    text = read_text(path, most=MAX_BYTES, too_large="no choices are that many")
    return Choices.from_json(text, place=str(path))


def fingerprint(machine: Processor) -> str:
    """Return what another machine has to share for a choice to hold there."""
    return f"{machine.name}, {machine.cores} cores, {machine.physical} physical: {' '.join(machine.flags)}"


def is_current(choice: Choice) -> bool:
    """Whether the chosen engine is there, and every one that was tried has the release it was tried in."""
    if choice.engine in NET_ENGINES and installed(choice.engine):
        return False
    return dict(choice.versions) == releases(tuple(choice.versions))


def releases(engines: Sequence[str]) -> dict[str, str]:
    """Return the release of each engine, "unknown" for one that is not installed."""
    packages: Mapping[str, str] = {LLAMA: "xllamacpp", **{name: row.package for name, row in NET_ENGINES.items()}}
    found = {}
    for name in engines:
        try:
            found[name] = version(packages[name])
        except (KeyError, PackageNotFoundError):
            found[name] = "unknown"
    return found


def _is_sound(one: Choice | Tried) -> bool:
    """Whether `optimize` could have tried it: the file may have come with the artefact, from anybody."""
    known: list[Mapping[str, bool]] = [{}]
    if one.engine != LLAMA:
        known = list(NET_ENGINES[one.engine].every) if one.engine in NET_ENGINES else []
    return dict(one.settings) in [dict(settings) for settings in known] and 1 <= one.threads <= MOST_THREADS

"""Which engine runs an artefact fastest on which machine, as it is remembered beside the artefact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tersor.core.errors import FormatError
from tersor.core.records import from_json_text, plain, read_record, to_json_text

__all__ = ["CHOICES_SCHEMA", "SLOWER", "Choice", "Choices", "Tried", "choices_path"]

CHOICES_SCHEMA = "tersor.choices/1"
SLOWER = "slower"
"""The note of what could have been taken."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One way that was measured.

    settings  of the engine
    best_ms   the shortest run of a round, its lower quartile over rounds; None where it did not run
    note      why it was not taken, "" for the one that was
    """

    engine: str
    threads: int
    settings: Mapping[str, bool]
    best_ms: float | None
    note: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether it ran, and gave the results that the chosen one gives."""
        return self.best_ms is not None and self.note in ("", SLOWER)


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs one artefact fastest on one machine.

    artefact_sha256  of its first file
    machine          processor, instruction sets and cores: what another machine has to share
    batch, length    of free axes of inputs
    tried            every way, the chosen one first
    versions         of the engines: another release may be faster in another way
    searched         engines, threads and clock, where some were asked for; "": all that there is was tried
    """

    artefact_sha256: str
    machine: str
    engine: str
    threads: int
    settings: Mapping[str, bool]
    batch: int
    length: int
    best_ms: float
    tried: tuple[Tried, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    searched: str = ""


@dataclass(frozen=True, slots=True)
class Choices:
    """All that is remembered of one artefact, one choice a machine and shape of inputs."""

    choices: tuple[Choice, ...] = ()
    schema: str = CHOICES_SCHEMA

    def find(self, sha256: str, machine: str, batch: int, length: int) -> Choice | None:
        """Return the choice for these very bytes on such a machine; None where nothing is remembered."""
        wanted = (sha256, machine, batch, length)
        return next((one for one in self.choices if _key(one) == wanted), None)

    def with_choice(self, choice: Choice) -> Choices:
        """Return all choices with this one, in the place of one for the same bytes, machine and shape.

        Choices for other bytes are forgotten: the artefact has changed.
        """
        kept = (
            one for one in self.choices if _key(one) != _key(choice) and one.artefact_sha256 == choice.artefact_sha256
        )
        return Choices((*kept, choice))

    def to_json(self) -> str:
        """Return the document."""
        return to_json_text(plain(self))

    @classmethod
    def from_json(cls, text: str, *, place: str) -> Choices:
        """Read what `to_json` wrote; FormatError names `place` and what is wrong."""
        document = from_json_text(text, place)
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != CHOICES_SCHEMA:
            raise FormatError(f"{place}: schema {schema!r:.60}, this version reads {CHOICES_SCHEMA!r}")
        return read_record(cls, document, place)


def choices_path(artefact: Path) -> Path:
    """Return where choices of an artefact lie.

    >>> choices_path(Path("nets/small.onnx")).as_posix()
    'nets/small.onnx.choices.json'
    """
    return artefact.with_name(f"{artefact.name}.choices.json")


def _key(choice: Choice) -> tuple[str, str, int, int]:
    return choice.artefact_sha256, choice.machine, choice.batch, choice.length

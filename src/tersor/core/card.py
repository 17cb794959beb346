"""The Card: what was done to a model, what it cost, and everything needed to do it again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tersor.core.errors import FormatError
from tersor.core.plan import Plan, PlannedTensor, from_json_object

__all__ = ["CARD_SCHEMA", "Artefact", "Card", "Seconds", "TensorError", "card_path"]

CARD_SCHEMA = "tersor.card/1"

WORST = 5


@dataclass(frozen=True, slots=True)
class Artefact:
    """One written file; `sha256` is empty for a dry run."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorError:
    """What rounding cost one tensor: rms(decode(encode(x)) - x) / rms(x); None where not measured.

    A tensor of zeros that stays zeros has error 0; one that does not has None, for want of a measure.
    """

    name: str
    relative: float | None


@dataclass(frozen=True, slots=True)
class Seconds:
    """Time spent in each stage; the stages run side by side, so `total` can be less than their sum."""

    reading: float = 0.0
    encoding: float = 0.0
    measuring: float = 0.0
    writing: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Card:
    """One quantization: plan, proof and provenance.

    name                name of the model
    sources             name and SHA-256 of every file that was read
    source_bytes        bytes of the source tensors, in their own types
    artefacts           the files that were written, in order
    errors              one row a tensor, in the order of the plan
    peak_memory_bytes   largest resident size of the whole process so far; None where the system does not tell
    versions            of tersor, Python, NumPy and the kernels
    command             what was typed, without private paths
    """

    name: str
    plan: Plan
    sources: Mapping[str, str]
    source_bytes: int
    artefacts: tuple[Artefact, ...]
    errors: tuple[TensorError, ...]
    seconds: Seconds
    peak_memory_bytes: int | None
    versions: Mapping[str, str]
    platform: str
    command: str
    dry_run: bool = False
    notes: tuple[str, ...] = ()
    schema: str = CARD_SCHEMA

    @property
    def nbytes(self) -> int:
        """Bytes of all written files."""
        return sum(artefact.nbytes for artefact in self.artefacts)

    @property
    def ratio(self) -> float:
        """How many times smaller the artefact is than the source tensors."""
        return self.source_bytes / max(self.nbytes, 1)

    @property
    def mean_error(self) -> float | None:
        """Root of the mean squared relative error, weighted by parameters; None where not measured."""
        rows = [(t.weights, e.relative) for t, e in zip(self.plan.tensors, self.errors, strict=False)]
        known = [(weights, error) for weights, error in rows if error is not None]
        total = sum(weights for weights, _ in known)
        return math.sqrt(sum(weights * error**2 for weights, error in known) / total) if total else None

    def to_object(self) -> dict[str, object]:
        """Return the Card as plain values, ready for JSON."""
        derived = {"bytes": self.nbytes, "ratio": self.ratio, "mean_error": self.mean_error}
        derived |= {"bits_per_weight": self.plan.bits_per_weight, "weights": self.plan.weights}
        return {**dataclasses.asdict(self), "summary": derived}

    def to_json(self) -> str:
        """Return the Card as one JSON document."""
        return json.dumps(self.to_object(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, place: str = "card") -> Card:
        """Read what `to_json` wrote; FormatError names `place` and what is wrong."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{place}: not a JSON document ({error})") from error
        if isinstance(document, dict):
            document.pop("summary", None)
        fields = from_json_object(Card, document, place)
        if fields["schema"] != CARD_SCHEMA:
            raise FormatError(f"{place}: schema {fields['schema']!r}, this version reads {CARD_SCHEMA!r}")
        fields["plan"] = Plan.from_object(fields["plan"], place=f"{place}: plan")
        fields["seconds"] = Seconds(**from_json_object(Seconds, fields["seconds"], f"{place}: seconds"))
        for key, row in (("artefacts", Artefact), ("errors", TensorError)):
            fields[key] = tuple(row(**from_json_object(row, value, f"{place}: {key}")) for value in fields[key])
        for key in ("sources", "versions"):
            pairs = fields[key]
            if not isinstance(pairs, dict) or not all(isinstance(value, str) for value in pairs.values()):
                raise FormatError(f"{place}: {key} must map text to text")
        return cls(**{**fields, "notes": tuple(fields["notes"])})

    def to_markdown(self, *, tensors: bool = True) -> str:
        """Return the Card as one page, the summary first and, unless `tensors` is False, every tensor last."""
        parts = [_headline(self), _formats(self), _worst(self), _notes(self), _made(self)]
        parts += [_every_tensor(self)] * tensors
        return "\n\n".join(part for part in parts if part) + "\n"


def card_path(artefact: Path, suffix: str = "md") -> Path:
    """Return where the Card of an artefact lies: beside it, as `NAME.card.md` or `NAME.card.json`.

    >>> card_path(Path("out/model.gguf")).as_posix()
    'out/model.card.md'
    """
    return artefact.with_name(f"{artefact.name.removesuffix('.gguf')}.card.{suffix}")


def _headline(card: Card) -> str:
    error = card.mean_error
    cost = "error not measured" if error is None else f"mean error {error:.3%}"
    before, after = card.source_bytes * 8 / max(card.plan.weights, 1), card.plan.bits_per_weight
    title = f"# {card.name} → {card.plan.recipe.format}" + " (plan only, nothing written)" * card.dry_run
    return (
        f"{title}\n\n**{card.ratio:.2f}× smaller**: {size(card.source_bytes)} → **{size(card.nbytes)}** · "
        f"{before:.2f} → **{after:.2f} bits per weight** · {cost} · {card.plan.weights:,} weights"
    )


def _formats(card: Card) -> str:
    groups: dict[str, list[tuple[PlannedTensor, TensorError]]] = {}
    for pair in zip(card.plan.tensors, card.errors, strict=False):
        groups.setdefault(pair[0].format, []).append(pair)
    rows = []
    for name, pairs in sorted(groups.items(), key=lambda item: -sum(t.nbytes for t, _ in item[1])):
        nbytes, weights = sum(t.nbytes for t, _ in pairs), sum(t.weights for t, _ in pairs)
        measured = [(t.weights, e.relative) for t, e in pairs if e.relative is not None]
        mean = math.sqrt(sum(n * e**2 for n, e in measured) / max(sum(n for n, _ in measured), 1))
        share = nbytes / max(card.plan.nbytes, 1)
        error = f"{mean:.3%}" if measured else "–"
        bits = nbytes * 8 / max(weights, 1)
        rows.append(f"| {name} | {len(pairs)} | {weights:,} | {bits:.3f} | {size(nbytes)} | {share:.1%} | {error} |")
    head = "| format | tensors | weights | bits each | size | share | error |\n|---|--:|--:|--:|--:|--:|--:|"
    return "## Formats\n\n" + "\n".join([head, *rows])


def _worst(card: Card) -> str:
    known = [(e.relative, t) for t, e in zip(card.plan.tensors, card.errors, strict=False) if e.relative]
    if not known:
        return ""
    rows = [
        f"| `{tensor.name}` | {tensor.format} | {error:.3%} |"
        for error, tensor in sorted(known, key=lambda pair: -pair[0])[:WORST]
    ]
    return "\n".join(["## Largest errors", "", "| tensor | format | error |", "|---|---|--:|", *rows])


def _notes(card: Card) -> str:
    fallbacks = card.plan.fallbacks
    parts = []
    if fallbacks:
        weights = sum(tensor.weights for tensor in fallbacks) / max(card.plan.weights, 1)
        parts.append(
            f"## Fallbacks\n\n{len(fallbacks)} tensors ({weights:.1%} of the weights) could not take their format:\n"
        )
        parts.append("| tensor | wanted | got | why |\n|---|---|---|---|")
        parts += [f"| `{t.name}` | {t.wanted} | {t.format} | {_cell(t.reason)} |" for t in fallbacks]
    else:
        parts.append("## Fallbacks\n\nNone: every tensor has the format that was chosen for it.")
    if card.notes:
        parts.append("\n## Notes\n")
        parts += [f"- {note}" for note in card.notes]
    return "\n".join(parts)


def _made(card: Card) -> str:
    seconds, recipe = card.seconds, card.plan.recipe
    lines = ["## How it was made", ""]
    if card.command:
        lines += ["```", card.command, "```", ""]
    lines.append(f"- recipe: `{recipe.format}`, search `{recipe.search}`, mixture table `{recipe.mixture}`")
    if recipe.importance:
        lines.append(f"- importance: {recipe.importance}")
    if not card.dry_run:
        lines.append(
            f"- time: {seconds.total:.1f} s (reading {seconds.reading:.1f}, encoding {seconds.encoding:.1f}, "
            f"measuring {seconds.measuring:.1f}, writing {seconds.writing:.1f}; stages overlap)"
        )
    if card.peak_memory_bytes is not None:
        lines.append(f"- peak memory of the process: {size(card.peak_memory_bytes)}")
    lines.append(f"- on: {card.platform}")
    lines.append("- with: " + ", ".join(f"{name} {version}" for name, version in card.versions.items()))
    lines += [f"- source `{name}`: sha256 `{digest}`" for name, digest in card.sources.items()]
    lines += [
        f"- artefact `{a.name}`: {a.nbytes:,} bytes, sha256 `{a.sha256 or 'not written'}`" for a in card.artefacts
    ]
    return "\n".join(lines)


def _every_tensor(card: Card) -> str:
    head = "| tensor | shape | from | to | bits | error | why |\n|---|---|---|---|--:|--:|---|"
    rows = []
    for tensor, error in zip(card.plan.tensors, card.errors, strict=False):
        shape = " × ".join(map(str, tensor.shape))
        cost = "–" if error.relative is None else f"{error.relative:.3%}"
        rows.append(
            f"| `{tensor.name}` | {shape} | {tensor.source_dtype} | {tensor.format} | {tensor.bits_per_weight:.2f} "
            f"| {cost} | {_cell(tensor.reason)} |"
        )
    return "## Every tensor\n\n" + "\n".join([head, *rows])


def _cell(text: str) -> str:
    """Return `text` fit for a table cell: a pattern may hold "|"."""
    return text.replace("|", "\\|")


def size(count: int) -> str:
    """Return a byte count in the unit that reads best.

    >>> size(512), size(3_670_016), size(5 * 2**30)
    ('512 B', '3.50 MiB', '5.00 GiB')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"

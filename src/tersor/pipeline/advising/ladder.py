"""The ladder: from what costs least to what costs most, each rung made and measured, until one meets the goal.

A level holds what makes artefacts of about one size. Its first rung is the cheapest; those after it are cures, tried
only where the one before lost too much. A level that keeps the quality but is too large or too slow leads to the next
one; a level that no cure brings within the quality is the end, for below it more is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tersor.core.errors import MissingError, SchemeError, TersorError, UnsupportedError
from tersor.core.evaluation import Metric
from tersor.core.quantities import size
from tersor.core.records import plain
from tersor.evaluation.limits import judge
from tersor.pipeline.advising.made import Made, keep_made, kept_made

__all__ = ["Advice", "Finding", "Goal", "Rung", "Verdict", "walk"]

Verdict: TypeAlias = Literal[
    "met", "likely met", "too large", "too slow", "loses too much", "passed over", "impossible"
]
MET: frozenset[Verdict] = frozenset({"met", "likely met"})
SCHEMA = "tersor.advice/1"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted.

    most_loss     of quality that is allowed, in `unit`: nats of KL divergence, or percentage points of accuracy
    most_bytes    of the artefact; None: no matter
    least_speed   × the speed of full precision; None: no matter
    Without a size or a speed the smallest artefact within `most_loss` is wanted.
    """

    most_loss: float
    unit: str
    most_bytes: int | None = None
    least_speed: float | None = None

    def __post_init__(self) -> None:
        if not self.most_loss >= 0:
            raise SchemeError(f"the largest loss is 0 {self.unit} or more, got {self.most_loss:g}")
        if self.most_bytes is not None and self.most_bytes < 1:
            raise SchemeError(f"the largest size is a byte or more, got {self.most_bytes}")
        if self.least_speed is not None and not 0 < self.least_speed < 1000:
            raise SchemeError(f"the least speed is a multiple of full precision's, such as 2, got {self.least_speed:g}")

    @property
    def is_open(self) -> bool:
        """Whether nothing but quality is asked, so that smaller is always better."""
        return self.most_bytes is None and self.least_speed is None


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to make it.

    name      such as "q4_k_m, best"
    gain      what is to be expected of it, in one sentence
    make      writes it into a folder and measures it
    expected  bytes, as planned; None: nobody knows before it is made
    level     rungs of one level come one after the other
    is_bound  whether what loses too much here loses more below; False where it has no cure and those below have some
    """

    name: str
    gain: str
    level: int
    make: Callable[[Path], Made] = field(repr=False)
    expected: int | None = None
    is_bound: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a rung, and why; `made` None where it was not made."""

    rung: str
    gain: str
    verdict: Verdict
    reason: str
    seconds: float = 0.0
    made: Made | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """All rungs, and which one it is.

    chosen  the rung that meets the goal; None: none does
    next    what to try now, the most promising first

    A rung is "likely met" where its loss is within what is allowed and its interval is not: more data would tell.
    """

    model: str
    goal: Goal
    findings: tuple[Finding, ...]
    chosen: Finding | None
    next: tuple[str, ...]

    def to_object(self) -> dict[str, Any]:
        """Return it as plain values, ready for JSON."""
        chosen = None if self.chosen is None else self.chosen.rung
        return {"schema": SCHEMA, **plain(self), "chosen": chosen, "is_met": self.chosen is not None}


def walk(
    model: str,
    rungs: Sequence[Rung],
    goal: Goal,
    folder: Path,
    *,
    clock: Callable[[], float],
    tell: Callable[[Finding], None] = lambda _finding: None,
) -> Advice:
    """Make and measure one rung after the other, until one meets the goal or none below can.

    rungs   level by level, larger artefacts first
    folder  where artefacts are made, and what was measured of each is kept: what is there already is not made again
    tell    is told what became of each
    MissingError, UnsupportedError and SchemeError of a rung make that one impossible, with the reason: a net that
    cannot be trained, an engine that is absent. All others are raised.
    """
    findings: list[Finding] = []
    best: Finding | None = None
    levels = sorted({rung.level for rung in rungs})
    for level in levels:
        tried_here = [rung for rung in rungs if rung.level == level]
        here = _level(tried_here, goal, folder, clock, tell)
        findings += here
        met = next((one for one in here if one.verdict in MET), None)
        best = met or best
        tried = [one for one in here if one.made is not None]
        is_lost = met is None and bool(tried) and tried[-1].verdict == "loses too much"
        is_lost = is_lost and all(rung.is_bound for rung in tried_here)
        if is_lost or (met is not None and not goal.is_open):
            why = "the larger one above loses too much already" if is_lost else "the goal is met above"
            below = [_passed_over(rung, why) for rung in rungs if rung.level > level]
            findings += below
            for one in below:
                tell(one)
            break
    return Advice(model, goal, tuple(findings), best, tuple(_next(findings, best, goal)))


def _level(
    rungs: Sequence[Rung],
    goal: Goal,
    folder: Path,
    clock: Callable[[], float],
    tell: Callable[[Finding], None],
) -> list[Finding]:
    """Take the rungs of a level until one keeps the quality."""
    findings: list[Finding] = []
    is_lost = True  # the first is tried in any case
    for rung in rungs:
        if goal.most_bytes is not None and rung.expected is not None and rung.expected > goal.most_bytes:
            found = _passed_over(rung, f"{size(rung.expected)} are above the {size(goal.most_bytes)} that are allowed")
        elif not is_lost:
            found = _passed_over(rung, "not needed: what is before it keeps the quality")
        else:
            found = _tried(rung, goal, folder, clock)
            is_lost = found.verdict in ("loses too much", "impossible")
        findings.append(found)
        tell(found)
    return findings


def _tried(rung: Rung, goal: Goal, folder: Path, clock: Callable[[], float]) -> Finding:
    began = clock()
    try:
        made, earlier = kept_made(folder, rung.name) or (rung.make(folder), 0.0)
    except (MissingError, UnsupportedError, SchemeError) as error:
        return Finding(rung.name, rung.gain, "impossible", _first_line(error), clock() - began)
    verdict, reason = _judged(made, goal)
    found = Finding(rung.name, rung.gain, verdict, reason, clock() - began + earlier, made)
    keep_made(folder, rung.name, made, found.seconds)
    return found


def _judged(made: Made, goal: Goal) -> tuple[Verdict, str]:
    """What the goal says of an artefact: quality first, for without it the rest is of no use."""
    quality, most = judge(made.loss, goal.most_loss), f"{goal.most_loss:g} {goal.unit}"
    if quality.outcome == "fail" or made.loss.value > goal.most_loss:
        return "loses too much", f"{made.loss.value:.3g} {goal.unit} are lost, not at most {most}"
    if goal.most_bytes is not None and made.nbytes > goal.most_bytes:
        return "too large", f"{size(made.nbytes)} are above the {size(goal.most_bytes)} that are allowed"
    if goal.least_speed is not None:
        if made.speed is None:
            return "too slow", "its speed could not be measured"
        if made.speed.value < goal.least_speed:
            return "too slow", f"{made.speed.value:.2f}× the speed of full precision, not {goal.least_speed:g}×"
    if quality.outcome == "pass":
        return "met", f"{made.loss.value:.3g} {goal.unit} are lost, at most {most} are allowed"
    needed = (
        "" if quality.needed is None else f": it rests on {made.loss.units:,}, about {quality.needed:,} would settle it"
    )
    return "likely met", f"{made.loss.value:.3g} {goal.unit} are lost, but its interval reaches beyond {most}{needed}"


def _passed_over(rung: Rung, reason: str) -> Finding:
    return Finding(rung.name, rung.gain, "passed over", reason)


def _next(findings: Sequence[Finding], chosen: Finding | None, goal: Goal) -> Iterator[str]:
    """Yield what to try now."""
    lost = [one for one in findings if one.verdict == "loses too much"]
    if chosen is not None:
        if chosen.verdict == "likely met":
            yield f"give more data to judge {chosen.rung} by: {chosen.reason}"
        smaller = [one for one in findings[findings.index(chosen) :] if one in lost]
        if smaller:
            yield f"what is smaller loses too much: {smaller[-1].rung}: {smaller[-1].reason}"
        yield "judge it before it serves: tersor gate, or tersor evaluate on data of your own"
        return
    fitting = [one for one in lost if _fits(one, goal)]
    if fitting:
        nearest = min(fitting, key=_loss)
        yield f"allow a loss of {_loss(nearest):.3g} {goal.unit}: {nearest.rung} would do"
    kept = [one for one in findings if one.verdict in ("too large", "too slow")]
    if kept:
        yield f"of those that keep the quality {kept[-1].rung} comes nearest: {kept[-1].reason}"
    for one in findings:
        if one.verdict == "impossible":
            yield f"make {one.rung} possible: {one.reason}"


def _fits(finding: Finding, goal: Goal) -> bool:
    made = finding.made
    if made is None or (goal.most_bytes is not None and made.nbytes > goal.most_bytes):
        return False
    return goal.least_speed is None or (made.speed is not None and made.speed.value >= goal.least_speed)


def _loss(finding: Finding) -> float:
    """The loss that would have to be allowed."""
    loss = finding.made.loss if finding.made is not None else Metric("", float("inf"))
    return loss.value if loss.high is None else loss.high


def _first_line(error: TersorError) -> str:
    return str(error).split("\n", maxsplit=1)[0]

"""What is counted of every request, in the process that answers it: some microseconds each, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tersor.core.errors import SchemeError
from tersor.deploy.gateway.recording.cells import Cell, added, step_of
from tersor.deploy.gateway.recording.features import of_answer, of_request
from tersor.deploy.gateway.recording.samples import Reservoir
from tersor.deploy.rollout.sequential.counts import Count

__all__ = ["DAY_S", "MINUTE_S", "Record", "Recorder"]

MINUTE_S, DAY_S = 60, 86_400
MINUTES, DAYS = 60, 35
MOST_RECORDS = 256
MOST_ROLLOUTS = 64
Follower: TypeAlias = Callable[[str, str, Mapping[str, Any], bytes, Sequence[tuple[Mapping[str, Any], bytes]]], None]


@dataclass(slots=True)
class Record:
    """One variant of one model: the last hour by minutes, five weeks by days.

    now      the minute that lasts
    minutes  those before it, the oldest first
    days     what ended minutes add up to
    """

    now: Cell = field(default_factory=lambda: Cell(0))
    minutes: deque[Cell] = field(default_factory=lambda: deque(maxlen=MINUTES))
    days: deque[Cell] = field(default_factory=lambda: deque(maxlen=DAYS))

    def at(self, moment: float) -> Cell:
        """Return the minute to count in; a clock that is set back by less than one goes on with the one that lasts."""
        if not self.now.at - MINUTE_S <= moment < self.now.at + MINUTE_S:
            self._turn(int(moment) // MINUTE_S * MINUTE_S)
        return self.now

    def since(self, moment: float) -> Cell:
        """Return all that was counted in minutes that began at `moment` or later."""
        return added(cell for cell in (*self.minutes, self.now) if cell.at >= moment)

    def _turn(self, at: int) -> None:
        if self.now.at:
            self.minutes.append(self.now)
            self._day(self.now.at // DAY_S * DAY_S).add(self.now)
        while self.minutes and self.minutes[-1].at >= at:
            # The clock was set back: what it called so is of no minute that comes, and stays in its day.
            self.minutes.pop()
        self.now = Cell(at)

    def _day(self, at: int) -> Cell:
        found = next((one for one in reversed(self.days) if one.at == at), None)
        if found is None:
            found = Cell(at)
            self.days = deque(sorted((*self.days, found), key=lambda one: one.at), DAYS)
        return found


@dataclass(eq=False)
class Recorder:
    """The records of all variants, and samples of what went in and came out.

    clock    Unix seconds
    inputs   model → sample since the last look at drift
    outputs  model, variant → the same of answers
    opinions rollout → variant → [right, labelled], of answers that it had drawn lots for; the oldest rollout first
    clipping model → layers that cut off more activations than on the calibration data; none: looked at, and well
    followers are given every answer: model, variant, request, payload, and the parts that were held back
    """

    clock: Callable[[], float] = time.time
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    inputs: dict[str, Reservoir] = field(default_factory=dict)
    outputs: dict[tuple[str, str], Reservoir] = field(default_factory=dict)
    opinions: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    clipping: dict[str, tuple[str, ...]] = field(default_factory=dict)
    followers: list[Follower] = field(default_factory=list)

    def cell(self, model: str, variant: str) -> Cell:
        """Return the minute of a variant that lasts."""
        record = self.records.get((model, variant))
        if record is None:
            if len(self.records) >= MOST_RECORDS:  # reloads brought ever new names: the one idle for longest goes
                del self.records[min(self.records, key=lambda key: self.records[key].now.at)]
            record = self.records[model, variant] = Record()
        return record.at(self.clock())

    def answered(self, model: str, variant: str, first_s: float, whole_s: float, tokens: int = 0) -> None:
        """Count an answer: seconds until its first part, and until its end."""
        cell = self.cell(model, variant)
        cell.answered += 1
        cell.tokens += tokens
        step = step_of(whole_s)
        cell.whole[step] = cell.whole.get(step, 0) + 1
        step = step_of(first_s)
        cell.first[step] = cell.first.get(step, 0) + 1

    def failed(self, model: str, variant: str) -> None:
        """Count a request that nobody answered; `variant` was to."""
        self.cell(model, variant).failed += 1

    def fell_back(self, model: str, variant: str) -> None:
        """Count a request that the fallback answered in place of `variant`."""
        self.cell(model, variant).fell_back += 1

    def compared(self, model: str, variant: str, *, agreed: float, apart: float | None = None) -> None:
        """Count an answer that was set beside the reference's: the share that agreed, and how far they are apart."""
        cell = self.cell(model, variant)
        cell.compared += 1
        cell.agreed += agreed
        if apart is not None:
            cell.measured += 1
            cell.apart += apart

    def floored(self, model: str, variant: str, *, agreed: float, apart: float | None = None) -> None:
        """Count an answer of the reference's that was set beside another of its own, while `variant` was compared."""
        cell = self.cell(model, variant)
        cell.floors += 1
        cell.floor_agreed += agreed
        cell.floor_apart += apart or 0.0

    def estimated(self, model: str, variant: str, *, expected: float, answers: int) -> None:
        """Count how many of some answers are expected to be right, where no label came."""
        cell = self.cell(model, variant)
        cell.expected += expected
        cell.estimated += answers

    def labelled(self, model: str, variant: str, *, is_right: bool) -> None:
        """Count an answer whose label came."""
        cell = self.cell(model, variant)
        cell.labelled += 1
        cell.right += is_right

    def said(self, rollout: str, variant: str, *, is_right: bool) -> None:
        """Count the label of an answer whose variant a rollout had drawn lots for."""
        known = self.opinions.setdefault(rollout, {}).setdefault(variant, [0, 0])
        known[0] += is_right
        known[1] += 1
        while len(self.opinions) > MOST_ROLLOUTS:
            del self.opinions[next(iter(self.opinions))]

    def opinion(self, rollout: str, variant: str) -> Count:
        """Return how many answers of a variant in a rollout were right, of those whose label came."""
        return Count(*self.opinions.get(rollout, {}).get(variant, (0, 0)))

    def restore_opinions(self, document: object) -> None:
        """Take up opinions that another gateway kept; what is anything else is left out."""
        try:
            given = {rollout: dict(rows) for rollout, rows in dict(document or {}).items()}  # type: ignore[call-overload]
            for rollout, rows in given.items():
                counts = {str(name): Count(*map(int, one)) for name, one in rows.items()}
                self.opinions[str(rollout)] = {name: [one.hits, one.total] for name, one in counts.items()}
        except (TypeError, ValueError, SchemeError):
            return

    def holds(self, model: str, variant: str, memory_bytes: int) -> None:
        """Tell what an engine holds now."""
        cell = self.cell(model, variant)
        cell.memory_bytes = max(cell.memory_bytes, memory_bytes)

    def asked(self, model: str, request: Mapping[str, Any], payload: bytes) -> None:
        """Look at a request, if it is in the sample."""
        reservoir = self.inputs.get(model) or self.inputs.setdefault(model, Reservoir())
        place = reservoir.place()
        if place is not None:
            reservoir.put(place, of_request(request, payload))

    def told(self, model: str, variant: str, held: Sequence[tuple[Mapping[str, Any], bytes]], tokens: int) -> None:
        """Look at an answer, if it is in the sample."""
        key = model, variant
        reservoir = self.outputs.get(key) or self.outputs.setdefault(key, Reservoir())
        place = reservoir.place()
        if place is not None and (found := of_answer(held, tokens)):
            reservoir.put(place, found)

    def turn(self, names: Iterable[tuple[str, str]]) -> None:
        """Let the minute of variants begin where nobody asks them."""
        for model, variant in names:
            self.cell(model, variant)

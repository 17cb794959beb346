"""From costs and a goal to a format for each operator of a net.

Bytes and time against divergence is a knapsack with a choice for each operator (`analyse.allocation`). A limit of both
is one of a weighted sum of both (Glover 1965): whatever keeps both keeps the sum, so the best mix within sums of
several weights that keeps both is taken. Where accuracy has a limit, mixes of rising size are measured, the smallest
that keeps it is looked for by bisection and from below, and then operators are made smaller one at a time as long as
what is measured allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tersor.analyse.allocation import Frontier, Mix, Option
from tersor.analyse.analysis import Analysis
from tersor.core.errors import QualityError, SchemeError
from tersor.evaluation.statistics import mean_interval
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.rebuild import FORMATS
from tersor.pipeline.nets.judge import Judge
from tersor.pipeline.nets.mixing.costs import Operators
from tersor.pipeline.nets.mixing.divergence import Yardstick
from tersor.pipeline.nets.mixing.goals import NetGoal
from tersor.pipeline.nets.mixing.speed import Clock
from tersor.pipeline.planning.layout import fixed_options
from tersor.pipeline.planning.plan_file import ONNX, PlanFile

__all__ = ["TRIALS", "NetPlanned", "NetPlanner"]

TRIALS = 16
"""Nets that are measured beside the first."""
RUNGS = 32
"""Sizes between the smallest and the largest mix, among which the smallest that is good enough is looked for."""
WEIGHTS = 33
"""Of bytes and time in their sum."""
UNITS = 1_000_000
"""Of that sum, at its limit."""
ROUNDS = 12
SLACK = 1.1
ROOM = 0.005
"""Share of a file that may be left free before more is spent."""
MARGIN = 0.98
"""A time that was exceeded is asked for anew with so much room: runs differ."""


@dataclass(frozen=True, eq=False)
class NetPlanned:
    """A plan and the net that it makes.

    mix    by the first operator of each choice; `loss` is the sum of divergences
    tried  nets that were measured
    """

    mix: Mix
    net: QuantizedNet
    file: PlanFile
    tried: int


@dataclass
class NetPlanner:
    """Plans for one analysed net.

    yardstick  items that plans are measured on
    judge      what accuracy is lost by; None: no limit of it can be kept
    clock      None: no limit of time can be kept
    fixed      "PATTERN=FORMAT" texts: operators that have no choice any more
    """

    operators: Operators
    analysis: Analysis
    yardstick: Yardstick
    judge: Judge | None = None
    clock: Clock | None = None
    target: str = "cpu"
    fixed: tuple[str, ...] = ()
    options: dict[str, list[Option]] = field(init=False)
    frontier: Frontier = field(init=False)
    times: dict[str, dict[str, int]] = field(default_factory=dict)
    drops: dict[tuple[str, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = {name: (name,) for name in self.operators.choices}
        self.options = fixed_options(self.analysis.options(groups), groups, self.fixed, _format)
        if not self.options:
            raise SchemeError(f"{self.analysis.model}: no operator can be stored as integers: there is nothing to plan")
        self.frontier = Frontier(self.options)

    def plan(self, goal: NetGoal, *, trials: int = TRIALS) -> NetPlanned:
        """Return the best plan within `goal`; SchemeError where none is, QualityError where accuracy has none."""
        self._prepare(goal)
        nbytes, time = self._bytes(goal), None if goal.max_latency_ms is None else round(1e6 * goal.max_latency_ms)
        time = time if time is None else time - self._fixed_time()
        best: NetPlanned | None = None
        told = ""
        for _ in range(ROUNDS):
            mix = self._chosen(goal, nbytes, time, trials)
            if best is not None and mix.formats == best.mix.formats:
                break
            made = self.operators.net(mix.formats)
            size, took = len(made.net.to_bytes()), self._took(made)
            over = 0 if goal.max_bytes is None else size - goal.max_bytes
            late = 0.0 if goal.max_latency_ms is None else took - goal.max_latency_ms
            if over <= 0 and late <= 0:
                if best is None or mix.loss < best.mix.loss:
                    best = self._planned(mix, made, goal, size, took)
                if goal.max_drop is not None or nbytes is None or -over <= ROOM * size:
                    break
            elif best is not None:
                break  # more room than there was
            else:
                told = f"{took:.3g} ms" if late > 0 else f"a file of {size:,} bytes"
            if nbytes is not None:
                nbytes = min(nbytes - over, mix.nbytes - 1) if over > 0 else nbytes - over
                nbytes = min([nbytes, *self._of_bits(goal)])  # room in the file is none in bits
                # neighbours share quantizers: what lies around weights differs from mix to mix
            if late > 0 and time is not None and goal.max_latency_ms is not None:
                room = MARGIN if self.clock is not None and self.clock.is_here else 1.0
                time = min(round(time - 1e6 * (took - room * goal.max_latency_ms)), self._time(mix.formats) - 1)
        if best is None:
            raise SchemeError(f"{goal.described()}: {told} is what was reached in {ROUNDS} rounds: allow more")
        return best

    def drop(self, mix: Mix) -> float:
        """Return what the net in `mix` loses, percentage points; measured once."""
        assert self.judge is not None, "a limit of accuracy without what to judge by"
        key = tuple(mix.formats[name] for name in self.operators.choices)
        if key not in self.drops:
            self.drops[key] = self.judge.drop(self.operators.net(mix.formats))
        return self.drops[key]

    def _prepare(self, goal: NetGoal) -> None:
        if goal.max_drop is not None and self.judge is None:
            raise SchemeError("--max-drop needs classes to judge by: the first output must be [items, classes]")
        if goal.max_latency_ms is None or self.times:
            return
        if self.clock is None:
            raise SchemeError("--max-latency-ms needs a machine")
        if self.clock.is_here:
            self.clock.calibrate()
        self.times = self.clock.nanoseconds()

    def _bytes(self, goal: NetGoal) -> int | None:
        """What weights with a choice may take."""
        limits = self._of_bits(goal)
        if goal.max_bytes is not None:
            smallest = self.frontier.at(self.frontier.smallest)
            around = len(self.operators.net(smallest.formats).net.to_bytes()) - smallest.nbytes
            limits.append(goal.max_bytes - around)
        return min(limits, default=None)

    def _of_bits(self, goal: NetGoal) -> list[int]:
        """The limit by bits per weight, if there is one."""
        bits, analysis = goal.bits_per_weight, self.analysis
        return [] if bits is None else [int(bits * analysis.weights / 8) - analysis.kept_bytes]

    def _fixed_time(self) -> int:
        """Nanoseconds of what has no choice, as told for the net on integers."""
        assert self.clock is not None, "prepared"
        finest = self._finest()
        return round(1e6 * self.clock.expected_ms(self.operators.net(finest))) - self._time(finest)

    def _finest(self) -> dict[str, str]:
        """Every operator in the integers of most bits that it may take, in what it may take where there are none."""
        integers = {
            name: [one.name for one in held if FORMATS[one.name] is not None] for name, held in self.options.items()
        }
        return {name: kinds[-1] if kinds else self.options[name][-1].name for name, kinds in integers.items()}

    def _time(self, formats: Mapping[str, str]) -> int:
        return sum(self.times[name][kind] for name, kind in formats.items())

    def _took(self, made: QuantizedNet) -> float:
        """Milliseconds of one call: measured where that can be, else told; 0 where nobody asked."""
        if self.clock is None or not self.times:
            return 0.0
        return self.clock.measured_ms(made) if self.clock.is_here else self.clock.estimated(made).value

    def _chosen(self, goal: NetGoal, nbytes: int | None, time: int | None, trials: int) -> Mix:
        largest = self.frontier.largest if nbytes is None else min(nbytes, self.frontier.largest)
        if largest < self.frontier.smallest:
            least = self.frontier.smallest
            raise SchemeError(
                f"{goal.described()}: {max(largest, 0):,} bytes are left for weights with a choice, and the smallest "
                f"mix of these formats takes {least:,}"
            )
        if goal.max_drop is None:
            return self._searched(self._best(largest, time, goal), largest, time, trials)
        return self._smallest(goal, largest, time, trials, goal.max_drop)

    def _best(self, nbytes: int, time: int | None, goal: NetGoal) -> Mix:
        """Return the mix of least loss within both limits; SchemeError where there is none."""
        if time is None:
            return self.frontier.at(nbytes)
        found: Mix | None = None
        for weight in np.linspace(0.0, 1.0, WEIGHTS).tolist():
            mix = self._within(weight, nbytes, time)
            fits = mix is not None and mix.nbytes <= nbytes and self._time(mix.formats) <= time
            if mix is not None and fits and (found is None or mix.loss < found.loss):
                found = mix
        if found is None:
            least = sum(min(kinds.values()) for kinds in self.times.values())
            raise SchemeError(
                f"{goal.described()}: no mix of these formats keeps that; operators with a choice take "
                f"{least / 1e6:.3g} ms at least, and {max(time, 0) / 1e6:.3g} are left for them"
            )
        return found

    def _within(self, weight: float, nbytes: int, time: int) -> Mix | None:
        """Return the best mix whose weighted sum of shares of both limits is at most 1."""
        if time <= 0 or nbytes <= 0:
            return None
        options = {
            name: [
                Option(
                    one.name,
                    round(UNITS * (weight * one.nbytes / nbytes + (1 - weight) * self.times[name][one.name] / time)),
                    one.loss,
                )
                for one in held
            ]
            for name, held in self.options.items()
        }
        frontier = Frontier(options)
        return self._mix(frontier.at(UNITS).formats) if frontier.smallest <= UNITS else None

    def _mix(self, formats: Mapping[str, str]) -> Mix:
        taken = [next(one for one in held if one.name == formats[name]) for name, held in self.options.items()]
        return Mix(dict(formats), sum(one.nbytes for one in taken), sum(one.loss for one in taken))

    def _smallest(self, goal: NetGoal, largest: int, time: int | None, trials: int, max_drop: float) -> Mix:
        """Return the smallest mix that was found to lose at most `max_drop`."""
        rungs: list[Mix] = []
        for nbytes in np.linspace(self.frontier.smallest, largest, RUNGS).round().astype(int).tolist():
            try:
                mix = self._best(nbytes, time, goal)
            except SchemeError:
                continue  # no time for so few bytes: larger ones may do
            if not rungs or mix.formats != rungs[-1].formats:
                rungs.append(mix)
        if not rungs:
            rungs.append(self._best(largest, time, goal))
        if self.drop(rungs[-1]) > max_drop:
            raise QualityError(
                f"{goal.described()}: the best mix within the other limits loses {self.drop(rungs[-1]):.2f} points"
            )
        low, high = -1, len(rungs) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.drop(rungs[middle]) <= max_drop else (middle, high)
        # what is lost does not only fall: a smaller one may keep it, by its own good or by that of few items
        below = rungs[: min(high, trials // 2)]
        mix = next((one for one in below if self.drop(one) <= max_drop), rungs[high])
        return self._shrunk(mix, max_drop, trials - len(below))

    def _shrunk(self, mix: Mix, max_drop: float, trials: int) -> Mix:
        """Make operators smaller one at a time, those first that save most bytes for what they cost."""
        refused: set[tuple[str, str]] = set()
        for _ in range(trials):
            falls = [fall for fall in self._falls(mix) if fall[:2] not in refused]
            if not falls:
                break
            name, kind, changed = falls[0]
            if self.drop(changed) <= max_drop:
                mix = changed
            else:
                refused.add((name, kind))
        return mix

    def _falls(self, mix: Mix) -> list[tuple[str, str, Mix]]:
        """Mixes in which one operator is smaller: the most bytes for a loss first."""
        found = []
        for name, held in self.options.items():
            here = next(one for one in held if one.name == mix.formats[name])
            for option in held:
                if option.nbytes < here.nbytes:
                    price = max(option.loss - here.loss, 1e-30) / (here.nbytes - option.nbytes)
                    found.append((price, name, option.name, self._mix({**mix.formats, name: option.name})))
        return [(name, kind, changed) for _, name, kind, changed in sorted(found, key=lambda row: row[:3])]

    def _searched(self, mix: Mix, nbytes: int, time: int | None, trials: int) -> Mix:
        """Measure neighbours of a mix beside it; take what is better beyond the noise, and go on from there.

        Where time is short the mix is left: what is best in bytes is not what neighbours in time are made of.
        """
        while trials > 0 and time is None:
            near = self.frontier.neighbours(mix, nbytes, trials, SLACK) if mix.loss > 0 else []
            trials -= max(len(near), 1)
            here = self.yardstick.divergences(self.operators.net(mix.formats).net) if near else np.zeros(0)
            best, gain = mix, 0.0
            for one in near:
                low = mean_interval(here - self.yardstick.divergences(self.operators.net(one.formats).net)).low
                best, gain = (one, low) if low > gain else (best, gain)
            if best is mix:
                break
            mix = best
        return mix

    def _planned(self, mix: Mix, made: QuantizedNet, goal: NetGoal, size: int, took: float) -> NetPlanned:
        kl = mean_interval(self.yardstick.divergences(made.net))
        weights = max(self.analysis.weights, 1)
        predicted = {
            "kl": self.analysis.predicted(mix.loss),
            "bits_per_weight": 8 * (mix.nbytes + self.analysis.kept_bytes) / weights,
            "weight_bytes": mix.nbytes + self.analysis.kept_bytes,
        }
        measured = {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "file_bytes": size}
        measured = {
            name: value for name, value in measured.items() if math.isfinite(value)
        }  # few items tell no interval
        if self.judge is not None:
            measured["drop_points"] = self.drop(mix)
        if self.clock is not None and self.times:
            predicted["latency_ms"] = self.clock.expected_ms(made)
            measured |= {"latency_ms": took} if self.clock.is_here else {}
        recipe = self.operators.roundings.finest.recipe
        file = PlanFile(
            self.operators.spread(mix.formats),
            model=self.analysis.model,
            target=self.target,
            container=ONNX,
            method="ptq",
            calibration=self.analysis.calibration,
            goal=goal.described(),
            engine=recipe.engine,
            activations=recipe.activations,
            predicted=predicted,
            measured=measured,
        )
        return NetPlanned(mix, made, file, len(self.drops))


def _format(text: str) -> str:
    if text not in FORMATS:
        raise SchemeError(f"an operator of a net is planned as {', '.join(FORMATS)}, not {text!r}")
    return text

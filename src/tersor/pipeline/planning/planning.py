"""From an analysis and a goal to a plan: `tersor plan`.

The knapsack finds the mix whose second-order divergences add up to least; a few neighbours of it are then put together
and measured on text of their own, and one that is better beyond the noise takes its place. `measure` at last takes the
plan through the method itself, which also tells how far predictions have been off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tersor.analyse.allocation import Frontier, Mix, Option
from tersor.analyse.analysis import Analysis
from tersor.analyse.stitched import measure_mixes
from tersor.containers.mixtures import parse_overrides, tensor_format
from tersor.core.errors import SchemeError
from tersor.decoder import Decoder
from tersor.evaluation.statistics import mean_interval
from tersor.formats import get
from tersor.models.model import Model
from tersor.pipeline.planning.analysing import Studied
from tersor.pipeline.planning.goals import Goal
from tersor.pipeline.planning.layout import file_bytes, full_plan, fused_groups, spread
from tersor.pipeline.planning.plan_file import GGUF, PlanFile, Share

__all__ = ["Planned", "Planner", "shares_of"]

TRIALS = 8
"""Neighbours of the best mix that are measured."""
SLACK = 1.03
"""A neighbour is one whose predicted divergence is at most so many times that of the best."""
MARGIN = 192
"""Bytes of the file kept free: the words in which another run describes its calibration text."""
ROUNDS = 6
"""Corrections of the file's size beyond its tensors until it is known exactly."""


@dataclass(frozen=True)
class Planned:
    """A mix that meets a goal.

    file_bytes  of the whole GGUF, exactly
    kl          predicted divergence, nats per token
    tried       neighbours that were measured, and whether one of them was taken
    """

    mix: Mix
    file: PlanFile
    file_bytes: int
    kl: float
    tried: int = 0
    was_moved: bool = False


@dataclass
class Planner:
    """Plans for one analysed model.

    fixed  "PATTERN=FORMAT" texts: tensors that have no choice any more; the format must be one of their candidates
    """

    model: Model
    studied: Studied
    target: str = "cpu"
    fixed: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = field(init=False)
    frontier: Frontier = field(init=False)

    def __post_init__(self) -> None:
        self.groups = fused_groups([tensor.name for tensor in self.analysis.tensors], self.analysis.container)
        self.frontier = Frontier(self._options())

    @property
    def analysis(self) -> Analysis:
        """What is known of the model."""
        return self.studied.analysis

    def _options(self) -> dict[str, list[Option]]:
        options = self.analysis.options(self.groups)
        is_gguf = self.analysis.container == GGUF
        for override in parse_overrides(self.fixed, tensor_format if is_gguf else lambda text: get(text).name):
            found = [key for key, names in self.groups.items() if any(map(override.pattern.search, names))]
            if not found:
                raise SchemeError(f"the pattern {override.pattern.pattern!r} matches no tensor that has a choice")
            for name in found:
                kept = [option for option in options[name] if option.name == override.format]
                if not kept:
                    known = ", ".join(option.name for option in options[name])
                    raise SchemeError(f"{name} as {override.format} was not analysed; its candidates are {known}")
                options[name] = kept
        return options

    def plan(self, goal: Goal, *, trials: int = TRIALS) -> Planned:
        """Return the best plan within `goal`; SchemeError where none is."""
        if goal.max_bytes is not None and self.analysis.container != GGUF:
            raise SchemeError("the size of a checkpoint folder is not known beforehand: give --bits-per-weight")
        overhead, mix = 0, self.frontier.at(self.frontier.largest)
        nbytes: int | None = None
        for _ in range(ROUNDS):
            overhead = self._file(mix, goal).file_bytes - mix.nbytes - self.analysis.kept_bytes + MARGIN
            nbytes = self._budget(goal, mix, overhead)
            mix = self._within(goal, nbytes)
            found = self._file(mix, goal)
            if goal.max_bytes is None or found.file_bytes <= goal.max_bytes:
                break
        else:
            raise SchemeError(f"no mix makes a file of at most {goal.max_bytes} bytes")
        other = self._searched(mix, mix.nbytes if nbytes is None else nbytes, trials) if trials else mix
        made = self._file(other, goal)
        if goal.max_bytes is not None and made.file_bytes > goal.max_bytes:
            return replace(found, tried=trials)
        return replace(made, tried=trials, was_moved=other is not mix)

    def _budget(self, goal: Goal, mix: Mix, overhead: int) -> int | None:
        table = "token_embd.weight"
        is_read = all(tensor.name != "output.weight" for tensor in self.model.tensors)
        streamed = 0
        if not is_read and table in mix.formats:  # a GGUF's, since others keep it
            tensor = next(one for one in self.model.tensors if one.name == table)
            streamed = tensor.rows * get(mix.formats[table]).row_bytes(tensor.columns)
        weights, kept = self.analysis.weights, self.analysis.kept_bytes
        return goal.nbytes(self.model, weights=weights, kept=kept, overhead=overhead, streamed=streamed)

    def _within(self, goal: Goal, nbytes: int | None) -> Mix:
        kl = goal.kl
        if nbytes is not None and nbytes < self.frontier.smallest:
            raise SchemeError(f"{goal.described()}: {self._too_small(nbytes)}")
        if kl is None:
            assert nbytes is not None, "a goal without a limit"
            return self.frontier.at(nbytes)
        mix = self.frontier.least(self._loss(kl))
        if nbytes is not None and mix.nbytes > nbytes:
            best = self.analysis.predicted(self.frontier.at(nbytes).loss)
            raise SchemeError(
                f"{kl:.3g} nats take {mix.nbytes:,} bytes of tensors with a choice, and {nbytes:,} are allowed: there "
                f"the best is {best:.3g} nats"
            )
        return mix

    def _too_small(self, nbytes: int) -> str:
        """Say how small it can be, and which tensors stand in the way."""
        least, kept = self.frontier.smallest + self.analysis.kept_bytes, self.analysis.kept_bytes
        bits = 8 * least / self.analysis.weights
        said = (
            f"that leaves {max(nbytes, 0) + kept:,} bytes for tensors, and the smallest mix of these formats takes "
            f"{least:,} ({bits:.3g} bits per weight)"
        )
        stuck = [t for t in self.analysis.tensors if len(t.candidates) == 1]
        if stuck:
            rows = ", ".join(sorted({str(tensor.shape[-1]) for tensor in stuck}))
            said += f"; {len(stuck)} tensors can only be {stuck[0].candidates[0].format}, with rows of {rows} numbers"
        return said

    def _loss(self, kl: float) -> float:
        """The sum of second-order divergences that is predicted to come to `kl`."""
        low, high = math.log(1e-12), math.log(1e4)
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if self.analysis.predicted(math.exp(middle)) <= kl else (low, middle)
        return math.exp(low)

    def _file(self, mix: Mix, goal: Goal) -> Planned:
        analysis, where = self.analysis, self.analysis.container
        whole = spread(mix, self.groups)
        file = PlanFile(
            whole.formats,
            model=self.model.name,
            target=self.target,
            container="" if where == GGUF else where,
            method=analysis.method,
            calibration=analysis.calibration,
            goal=goal.described(),
        )
        plan = full_plan(self.model, file, analysis.method, analysis.calibration)
        kl, nbytes = analysis.predicted(mix.loss), file_bytes(self.model, plan, where)
        predicted = {
            "kl": kl,
            "perplexity_increase_percent": 100 * math.expm1(kl),
            "bits_per_weight": plan.bits_per_weight,
            "tensor_bytes": plan.nbytes,
            "file_bytes": nbytes,
        }
        return Planned(whole, replace(file, predicted=predicted), nbytes, kl)

    def _searched(self, mix: Mix, nbytes: int, trials: int) -> Mix:
        """Measure neighbours of a mix beside it, and return one that is better beyond the noise, or the mix itself."""
        neighbours = self._neighbours(mix, nbytes, trials)
        if not neighbours:
            return mix
        sides = {str(number): spread(one, self.groups).formats for number, one in enumerate([mix, *neighbours])}
        found = measure_mixes(Decoder(self.model), self.studied.surveyed, self.studied.measured_on, sides)
        best, gain = mix, 0.0
        for number, one in enumerate(neighbours, 1):
            difference = found["0"].kl - found[str(number)].kl
            low = mean_interval(difference).low
            if low > gain:
                best, gain = one, low
        return best

    def _neighbours(self, mix: Mix, nbytes: int, count: int) -> list[Mix]:
        """Mixes of which two tensors have changed, one up and one down, and that are predicted to be nearly as good."""
        fronts = self.frontier.fronts
        places = {name: _place(front, mix.formats[name]) for name, front in fronts.items()}
        rises = [(name, place) for name, at in places.items() for place in range(at + 1, len(fronts[name]))]
        falls = [(name, place) for name, at in places.items() for place in range(at)]
        found: list[Mix] = []
        for up, high in rises:
            for down, low in falls:
                changed = _changed(mix, fronts, places, {up: high, down: low})
                if up != down and changed.nbytes <= nbytes and changed.loss <= SLACK * mix.loss:
                    found.append(changed)
        return sorted(found, key=lambda one: (one.loss, one.nbytes))[:count]


def shares_of(planner: Planner, mix: Mix) -> dict[str, Share]:
    """Return what each tensor adds to a mix."""
    found = {}
    for tensor in planner.analysis.tensors:
        one = tensor.candidate(mix.formats[tensor.name])
        assert one is not None, "a mix of other candidates"
        found[tensor.name] = Share(one.nbytes, one.kl, one.kl / mix.loss if mix.loss > 0 else 0.0)
    return found


def _place(front: list[Option], name: str) -> int:
    return next(index for index, option in enumerate(front) if option.name == name)


def _changed(mix: Mix, fronts: Mapping[str, list[Option]], places: Mapping[str, int], moved: Mapping[str, int]) -> Mix:
    nbytes, loss, formats = mix.nbytes, mix.loss, dict(mix.formats)
    for name, place in moved.items():
        before, after = fronts[name][places[name]], fronts[name][place]
        nbytes, loss, formats[name] = nbytes + after.nbytes - before.nbytes, loss + after.loss - before.loss, after.name
    return Mix(formats, nbytes, loss)

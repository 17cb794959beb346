"""From an analysis and a goal to a plan: `tersor plan`.

The knapsack finds the mix whose second-order divergences add up to least; it and a few neighbours are then put together
and measured on text of their own, and one that is better beyond the noise takes its place. What the mix came to there
is what is predicted, moved by what runs of the method came to: `measure` takes the plan through the method itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tersor.analyse.allocation import Frontier, Mix, Option
from tersor.analyse.analysis import Analysis
from tersor.analyse.stitched import measure_mixes
from tersor.containers.mixtures import tensor_format
from tersor.core.errors import SchemeError
from tersor.decoder import Decoder
from tersor.evaluation.statistics import mean_interval
from tersor.formats import get
from tersor.models.model import Model
from tersor.pipeline.planning.analysing import Studied
from tersor.pipeline.planning.goals import PlanGoal, read_rate
from tersor.pipeline.planning.layout import file_bytes, fixed_options, full_plan, fused_groups, spread
from tersor.pipeline.planning.plan_file import GGUF, PlanFile, Share

__all__ = ["Planned", "Planner", "shares_of"]

TRIALS = 8
"""Neighbours of the best mix that are measured."""
SLACK = 1.03
"""A neighbour is one whose predicted divergence is at most so many times that of the best."""
MARGIN = 192
"""Bytes of the file kept free: the words in which another run describes its calibration text."""
ROUNDS = 6
"""Corrections of the file's size beyond its tensors until it is known exactly, and of its divergence."""
ROUNDING = 1e-9
"""Of milliseconds made from whole bytes, relative."""
NEAR = 0.97
"""Share of the divergence allowed from which on a plan is as small as can be told."""


@dataclass(frozen=True)
class Planned:
    """A mix that meets a goal.

    file_bytes  of the whole GGUF, exactly
    kl          predicted divergence, nats per token
    together    what the mix came to, put together from tensors rounded alone; None: it was not measured
    tried       neighbours that were measured, and whether one of them was taken
    """

    mix: Mix
    file: PlanFile
    file_bytes: int
    kl: float
    together: float | None = None
    tried: int = 0
    was_moved: bool = False


@dataclass
class Planner:
    """Plans for one analysed model.

    fixed    "PATTERN=FORMAT" texts: tensors that have no choice any more; the format must be one of their candidates
    allowed  formats that the target runs; of tensors that have others alone, those stay. None: all that were analysed
    progress  is told how far measuring is
    """

    model: Model
    studied: Studied
    target: str = "cpu"
    fixed: tuple[str, ...] = ()
    allowed: frozenset[str] | None = None
    progress: Callable[[str, int, int], None] | None = None
    groups: dict[str, tuple[str, ...]] = field(init=False)
    frontier: Frontier = field(init=False)
    _known: dict[frozenset[tuple[str, str]], npt.NDArray[np.float64]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = fused_groups([tensor.name for tensor in self.analysis.tensors], self.analysis.container)
        self.frontier = Frontier(self._options())

    @property
    def analysis(self) -> Analysis:
        """What is known of the model."""
        return self.studied.analysis

    def _options(self) -> dict[str, list[Option]]:
        read = tensor_format if self.analysis.container == GGUF else lambda text: get(text).name
        found = self.analysis.options(self.groups)
        if self.allowed is not None:
            held = {name: [one for one in rows if one.name in self.allowed] for name, rows in found.items()}
            found = {name: held[name] or rows for name, rows in found.items()}
        return fixed_options(found, self.groups, self.fixed, read)

    def plan(self, goal: PlanGoal, *, trials: int = TRIALS) -> Planned:
        """Return the best plan within `goal`; SchemeError where none is.

        trials  neighbours to measure beside it; 0: nothing is measured
        """
        if goal.max_bytes is not None and self.analysis.container != GGUF:
            raise SchemeError("the size of a checkpoint folder is not known beforehand: give --bits-per-weight")
        if goal.max_latency_ms is not None and goal.bandwidth is None:
            goal = replace(goal, bandwidth=read_rate())
        overhead, mix = 0, self.frontier.at(self.frontier.largest)
        nbytes: int | None = None
        streamed = self.unread(mix.formats)  # by the least of all mixes so far: what is left out never grows again
        for _ in range(ROUNDS):
            overhead = self._file(mix, goal).file_bytes - mix.nbytes - self.analysis.kept_bytes + MARGIN
            nbytes = self._budget(goal, overhead, streamed)
            mix = self._within(goal, nbytes, is_measured=bool(trials))
            found = self._file(mix, goal)
            if _keeps(found, goal):
                break
            streamed = min(streamed, self.unread(mix.formats))
        else:
            raise SchemeError(f"{goal.described()}: no mix was found that keeps it")
        if not trials:
            return found
        if goal.kl is not None:
            mix = self._held(mix, goal.kl, nbytes)
        other, together, tried = self._searched(mix, mix.nbytes if nbytes is None else nbytes, trials)
        made = self._file(other, goal, together[other is not mix])
        if _keeps(made, goal):
            return replace(made, tried=tried, was_moved=other is not mix)
        made = self._file(mix, goal, together[0])
        if not _keeps(made, goal):
            raise SchemeError(f"{goal.described()}: no mix was measured to keep it")
        return replace(made, tried=tried)

    def unread(self, formats: Mapping[str, str]) -> int:
        """Return the bytes of a table of embeddings of its own, of which a token reads one row."""
        table = "token_embd.weight"
        is_read = all(tensor.name != "output.weight" for tensor in self.model.tensors)
        if is_read or table not in formats:  # others than a GGUF keep it as it is
            return 0
        tensor = next(one for one in self.model.tensors if one.name == table)
        return tensor.rows * get(formats[table]).row_bytes(tensor.columns)

    def _budget(self, goal: PlanGoal, overhead: int, streamed: int) -> int | None:
        weights, kept = self.analysis.weights, self.analysis.kept_bytes
        return goal.nbytes(self.model, weights=weights, kept=kept, overhead=overhead, streamed=streamed)

    def _within(self, goal: PlanGoal, nbytes: int | None, *, is_measured: bool) -> Mix:
        """Return the best mix of at most `nbytes`, or the smallest that the curve predicts to keep the divergence.

        is_measured  where the curve says that both cannot be had, measuring has the last word: the best of `nbytes`
        """
        kl = goal.kl
        if nbytes is not None and nbytes < self.frontier.smallest:
            raise SchemeError(f"{goal.described()}: {self._too_small(nbytes)}")
        if kl is None:
            assert nbytes is not None, "a goal without a limit"
            return self.frontier.at(nbytes)
        mix = self.frontier.least(self._loss(kl))
        if nbytes is None or mix.nbytes <= nbytes:
            return mix
        best = self.frontier.at(nbytes)
        if not is_measured:
            raise SchemeError(
                f"{kl:.3g} nats take {mix.nbytes:,} bytes of tensors with a choice, and {nbytes:,} are allowed: there "
                f"the best is {self.analysis.predicted(best.loss):.3g} nats"
            )
        return best

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

    def _held(self, mix: Mix, kl: float, nbytes: int | None) -> Mix:
        """Return the smallest mix that was measured to keep `kl`: the curve that led to `mix` may be off."""
        best: Mix | None = None
        broken = math.inf  # the least sum of divergences that was measured to break it
        least = self.frontier.at(self.frontier.largest).loss
        for _ in range(ROUNDS):
            found = self.analysis.predicted(mix.loss, float(self._measured([mix])[0].mean()))
            if found > kl:
                broken = min(broken, mix.loss)
            elif best is None or mix.nbytes < best.nbytes:
                best = mix
            if NEAR * kl <= found <= kl:
                break
            wanted = mix.loss * (1 + NEAR) / 2 * kl / max(found, 1e-3 * kl)
            if not (0.0 if best is None else best.loss) < wanted < broken:
                wanted = NEAR * broken if best is None else math.sqrt(best.loss * broken)
            before, mix = mix, self.frontier.least(max(wanted, least))
            if mix.nbytes == before.nbytes or (nbytes is not None and mix.nbytes > nbytes):
                break
        if best is None:
            allowed = "" if nbytes is None else f" of at most {nbytes:,} bytes of tensors with a choice"
            raise SchemeError(
                f"no mix{allowed} was measured to diverge by {kl:.3g} nats or less: the best came to {found:.3g}"
            )
        return best

    def _measured(self, mixes: Sequence[Mix]) -> list[npt.NDArray[np.float64]]:
        """Return the divergence of each mix, put together, on each sequence, nats per token."""
        keys = [frozenset(one.formats.items()) for one in mixes]
        new = {str(number): spread(one, self.groups).formats for number, one in enumerate(mixes)}
        new = {side: formats for side, formats in new.items() if keys[int(side)] not in self._known}
        if new:
            studied = self.studied
            found = measure_mixes(Decoder(self.model), studied.surveyed, studied.measured_on, new, self.progress)
            self._known.update({keys[int(side)]: found[side].kl for side in new})
        return [self._known[key] for key in keys]

    def _file(self, mix: Mix, goal: PlanGoal, together: float | None = None) -> Planned:
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
        kl, nbytes = analysis.predicted(mix.loss, together), file_bytes(self.model, plan, where)
        predicted = {
            "kl": kl,
            "perplexity_increase_percent": 100 * math.expm1(kl),
            "bits_per_weight": plan.bits_per_weight,
            "tensor_bytes": plan.nbytes,
            "file_bytes": nbytes,
        }
        if goal.bandwidth is not None:
            predicted["latency_ms"] = 1000 * (plan.nbytes - self.unread(whole.formats)) / goal.bandwidth
        return Planned(whole, replace(file, predicted=predicted), nbytes, kl, together)

    def _searched(self, mix: Mix, nbytes: int, trials: int) -> tuple[Mix, tuple[float, float], int]:
        """Measure neighbours of a mix beside it, and return one that is better beyond the noise, or the mix itself.

        nbytes  that none may go beyond
        The numbers are what the mix given came to, and the one returned; and how many were measured beside it.
        """
        mixes = [mix, *self.frontier.neighbours(mix, nbytes, trials, SLACK)]
        found = self._measured(mixes)
        best, gain = 0, 0.0
        for number, one in enumerate(found):
            low = mean_interval(found[0] - one).low if number else 0.0
            if low > gain:
                best, gain = number, low
        return mixes[best], (float(found[0].mean()), float(found[best].mean())), len(mixes) - 1


def _keeps(made: Planned, goal: PlanGoal) -> bool:
    """Whether a plan keeps the limits that its bytes alone do not tell: of the file, and of what a token reads."""
    is_small = goal.max_bytes is None or made.file_bytes <= goal.max_bytes
    limit = goal.max_latency_ms
    return is_small and (limit is None or made.file.predicted["latency_ms"] <= limit * (1 + ROUNDING))


def shares_of(analysis: Analysis, mix: Mix) -> dict[str, Share]:
    """Return what each tensor adds to a mix."""
    found = {}
    for tensor in analysis.tensors:
        one = tensor.candidate(mix.formats[tensor.name])
        assert one is not None, "a mix of other candidates"
        found[tensor.name] = Share(one.nbytes, one.kl, one.kl / mix.loss if mix.loss > 0 else 0.0)
    return found

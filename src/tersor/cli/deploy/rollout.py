"""`tersor demo rollout`: two candidates for the embedded model, one good and one bad, with real traffic."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.screen.output import JsonOption, print_json
from tersor.cli.screen.progress import Bar, progress_bar
from tersor.deploy.rollout.decision import Decision
from tersor.deploy.rollout.sequential import ErrorRate, restored
from tersor.pipeline.deploy.demo import rollout as pipeline

__all__ = ["rollout"]

MEANING = {
    "created": "it is loaded",
    "gated": "it may be tried",
    "shadow": "it is compared, and answers nobody",
    "promoted": "it answers everybody",
    "rolled_back": "it is ended, and answers nobody",
    "paused": "no step follows",
}


def rollout(
    folder: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Keep artefacts, deployment and decisions here; new."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, for the dashboard, until Ctrl-C.")] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="That each step needs at least.")] = 150,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the prompts.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Roll out a good candidate (q8_0) and a bad one (q2_k) of the embedded model, and tell each decision.

    A gateway in a child process serves full precision on a free port of this machine, with a key of its own. Clients
    ask it all the time, with beginnings of held-out text. Each candidate is compared in the shadow; the good one then
    answers a growing share of requests. Shown are the numbers behind each decision, and what the clients saw. Exit
    code 1 if the good one is not promoted, the bad one not rolled back, or a client saw an error.
    """
    with _place(folder) as place, progress_bar("items") as bar:
        screen = _Screen(bar, is_silent=as_json, is_kept=folder is not None)
        pipeline.rollout_demo(
            place, samples=samples, seed=seed, is_kept=keep, opened=screen.opened, tell=screen.tell,
            ended=screen.ended, progress=bar,
        )  # fmt: skip
    if screen.outcome is None or not screen.outcome.is_as_expected:
        raise typer.Exit(1)


class _Screen:
    """Tells what happens as text, or at the end as one document."""

    def __init__(self, bar: Bar, *, is_silent: bool, is_kept: bool) -> None:
        self._bar, self._is_silent, self._is_kept = bar, is_silent, is_kept
        self._candidate, self._address, self._key = "", "", ""
        self.outcome: pipeline.RolloutDemo | None = None

    def opened(self, address: str, key: str) -> None:
        """Tell where it is."""
        self._address, self._key = address, key
        self._write(
            f"full precision ({pipeline.FULL}) serves on {address}, and clients ask it\n"
            f"dashboard  {address}/  key {key}\n"
            "evidence   safe e^a of e^b: the largest that it was so far, and the boundary at which it settles that\n"
        )

    def tell(self, step: pipeline.Step) -> None:
        """Tell a move."""
        if step.candidate != self._candidate:
            self._candidate = step.candidate
            self._write(f"\n{step.candidate} is tried\n")
        meaning = MEANING.get(step.state, f"it answers {100 * step.weight:g} % of requests")
        self._write(f"{step.after_s:6.1f} s  {step.state}: {meaning}; {step.why}\n")
        if step.decision is not None:
            lines = [*_evidence(step.decision), _again(step, is_kept=self._is_kept)]
            self._write("".join(f"            {line}\n" for line in lines))

    def ended(self, found: pipeline.RolloutDemo) -> None:
        """Tell the outcome."""
        self.outcome = found
        if self._is_silent:
            print_json(_document(found, self._address))
            return
        self._write("\n")
        for one in found.candidates:
            self._write(f"{one.format}: {one.outcome} after {one.seconds:.0f} s; it answered {one.answered} requests\n")
        errors = ", ".join(f"{count} × {kind}" for kind, count in found.errors.items()) or "no error"
        self._write(
            f"clients: {found.requests} requests, {errors}; median {1e3 * found.p50_s:.0f} ms, "
            f"99th percentile {1e3 * found.p99_s:.0f} ms\n"
            f"as expected: {'yes' if found.is_as_expected else 'NO'}\n"
        )

    def _write(self, text: str) -> None:
        if not self._is_silent:
            self._bar.write(text)


def _evidence(decision: Decision) -> Iterator[str]:
    """One line a test: what was seen, and how the evidence stands to its boundaries."""
    now, rules = decision.progress, decision.rules
    yield f"{now.samples} samples of {rules.least_samples}, {now.elapsed_s:.1f} s of {rules.least_s:g}"
    for name, test in restored(decision.tests).items():
        standing = decision.standings[name]
        if not standing.samples:
            yield f"{name}: nothing was seen yet"
            continue
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in standing.numbers.items() if "difference" not in key)
        yield (
            f"{name}: {standing.verdict} after {standing.samples} samples ({numbers}); "
            f"safe e^{test.safe.peak:.1f} of e^{test.safe.boundary:.1f}, "
            f"harmful e^{test.harm.peak:.1f} of e^{test.harm.boundary:.1f}"
            + (f", by the exact test {test.exact.nearness:.0%} of the way" if isinstance(test, ErrorRate) else "")
        )


def _again(step: pipeline.Step, *, is_kept: bool) -> str:
    """How the decision is made again from its record."""
    assert step.decision is not None, "it has one"
    if not is_kept or step.path is None:
        return f"{step.decision.action}: decided again from its record, and the same (-o keeps the record)"
    code = "import json, sys; from tersor.deploy.rollout.decision import replayed; "
    code += "print(replayed(json.load(open(sys.argv[1]))).action)"
    return f'{step.decision.action}: decided again from its record, and the same: python -c "{code}" {step.path}'


def _document(found: pipeline.RolloutDemo, address: str) -> dict[str, Any]:
    rows = [
        {
            "format": one.format, "outcome": one.outcome, "expected": one.expected, "seconds": one.seconds,
            "answered": one.answered, "steps": [_row(step) for step in one.steps],
        }
        for one in found.candidates
    ]  # fmt: skip
    return {
        "address": address, "is_as_expected": found.is_as_expected, "candidates": rows, "requests": found.requests,
        "answered": dict(found.answered), "errors": dict(found.errors), "p50_s": found.p50_s, "p99_s": found.p99_s,
        "seconds": found.seconds,
    }  # fmt: skip


def _row(step: pipeline.Step) -> Mapping[str, Any]:
    told = {name: getattr(step, name) for name in ("after_s", "state", "weight", "why")}
    return {**told, "decision": step.record}


@contextlib.contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that goes away."""
    if folder is not None:
        yield folder.expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="tersor-demo-") as made:
        yield Path(made)

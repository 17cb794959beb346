"""What is done when inputs drift: a command of the operator's, or the commands to give, written down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tersor.deploy.alerting.plan import AUTO
from tersor.deploy.config import Deployment, ModelPlan

__all__ = ["Refresh", "commands", "words_of"]

LONGEST_S = 6 * 3600.0
ENTRY = (
    "import sys; from tersor.deploy.running.worker import die_with; die_with(int(sys.argv.pop(1))); "
    "from tersor.cli.main import main; sys.exit(main())"
)
"""A command of ours that ends with the process whose id is its first argument."""
_log = logging.getLogger(__name__)


def commands(name: str, plan: ModelPlan, deployment: Deployment) -> tuple[str, ...]:
    """Return what calibrates, quantizes, judges and takes into service anew; words in capitals are the operator's.

    Where requests are kept one command does all of it.
    """
    if deployment.monitor.keep:
        return (f"tersor refresh {shlex.quote(deployment.file or 'DEPLOY.YAML')} --model {name}",)
    primary = Path(plan.variants[plan.primary].path)
    artefact = primary if primary.suffix else Path(f"{name}.gguf")
    fresh = shlex.quote(f"{artefact.stem}-fresh{artefact.suffix}")
    folder = shlex.quote(deployment.registry or "REGISTRY")
    add = f"tersor registry add {fresh} --name {name} --baseline FULL --registry {folder}"
    if plan.is_tensor:
        return (
            f"tersor quantize NET -o {fresh} --format FORMAT --calibration RECENT/",
            add,
            "a gate of your own, which records its verdict",
        )
    return (
        "tersor calibrate MODEL -o statistics --calibration RECENT.txt",
        f"tersor quantize MODEL -o {fresh} --format FORMAT --statistics statistics",
        add,
        f"tersor gate {fresh} --registry {folder}",
    )


def words_of(words: Sequence[str], file: str, model: str, who: str = "gateway") -> tuple[str, ...]:
    """Return the program and its arguments; for "auto" they are those of `tersor refresh`, which ends with this one:
    whoever serves next finds what is left to do, and does it."""
    if tuple(words) != (AUTO,):
        return tuple(words)
    return (sys.executable, "-c", ENTRY, str(os.getpid()), "refresh", file, "--model", model, "--who", who)


@dataclass(eq=False)
class Refresh:
    """Runs the command, one at a time, and each model's not too often.

    words    program and arguments; no shell reads them. The model is in TERSOR_MODEL, what drifted in TERSOR_FEATURES
    file     of the deployment
    every_s  least seconds from one run for a model to the next
    """

    words: Sequence[str]
    every_s: float
    longest_s: float = LONGEST_S
    file: str = ""
    _last: dict[str, float] = field(default_factory=dict)
    _taken: dict[str, float] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def go_on(self, last: Mapping[str, float]) -> None:
        """Count the last run for each model, of gateways before this one."""
        self._last.update(last)

    def may(self, model: str, moment: float) -> bool:
        """Whether a run for a model is due; it counts as begun then."""
        return self._is_due(self._last, model, moment)

    def takes_up(self, model: str, moment: float, *, is_tried: bool) -> bool:
        """Whether one that has waited for a rollout is to run now; it counts as taken up then.

        Once after each rollout, and again when it is due: one that was killed is still there.
        """
        if is_tried:
            self._taken.pop(model, None)
            return False
        return self._is_due(self._taken, model, moment)

    def _is_due(self, last: dict[str, float], model: str, moment: float) -> bool:
        passed = moment - last.get(model, -math.inf)
        if 0 <= passed < self.every_s:  # below, the clock was ahead then: how long ago that is nobody knows
            return False
        last[model] = moment
        return True

    async def run(
        self, model: str, features: Sequence[str], words: Sequence[str] = (), who: str = "gateway"
    ) -> int | None:
        """Run it, or `words` in its place, and return its exit code.

        None where it cannot be begun, or took too long and was ended.
        """
        words = words_of(words or self.words, self.file, model, who)
        environment = {**os.environ, "TERSOR_MODEL": model, "TERSOR_FEATURES": ",".join(features)}
        async with self._turn:
            try:
                process = await asyncio.create_subprocess_exec(
                    *words, env=environment, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                _log.error("refresh of %s: %s cannot be run (%s)", model, words[0], error.strerror)
                return None
            try:
                async with asyncio.timeout(self.longest_s):
                    return await process.wait()
            except TimeoutError:
                _log.error("refresh of %s: ended after %g s", model, self.longest_s)
                return None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, 9)
                    await process.wait()

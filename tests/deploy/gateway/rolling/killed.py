"""`tersor serve` that dies, as kill -9 would have it, when a rollout is about to be written into a state, or just was.

python killed.py STATE STEP before|after deploy.yaml --port 0
"""

from __future__ import annotations

import os
import signal
import sys

from tersor.cli.main import app
from tersor.deploy.gateway.rolling.keeping import RolloutFile
from tersor.deploy.gateway.rolling.progress import Progress

state, step, when = sys.argv[1:4]
keep = RolloutFile.keep


def kept(self: RolloutFile, name: str, now: Progress) -> None:
    """Keep it, and die where that is due."""
    last = self.read(name)
    is_due = (now.state, str(now.step)) == (state, step) and (
        last is None or last.state != state or last.step != now.step
    )
    if is_due and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, name, now)
    if is_due:
        os.kill(os.getpid(), signal.SIGKILL)


RolloutFile.keep = kept  # type: ignore[method-assign]
sys.argv = ["tersor", "serve", *sys.argv[4:]]
app()

"""A parent of writers that are killed: `python -m tests.deploy.registry.nursery`.

For every folder that stands on a line of stdin, a child is forked, which opens a registry there and works until it is
killed. stdout: the process id of the child, then a line for every step that the registry acknowledged, then "dead".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note

NOTES = 3
CYCLE = ("deploy full", "deploy q4", "shift q8", "rollback", "verdict", "note", "undeploy")


def say(line: str) -> None:
    """Write a line whole, past every buffer."""
    os.write(1, f"{line}\n".encode())


def step(registry: Registry, number: int) -> None:
    """Do step `number`."""
    action, _, artefact = CYCLE[number % len(CYCLE)].partition(" ")
    if action == "deploy":
        registry.deploy("chat", artefact, who="child")
    elif action == "shift":
        registry.shift("chat", artefact, state="canary", weight=0.25, who="child")
    elif action == "rollback":
        registry.rollback("chat", who="child")
    elif action == "verdict":
        registry.record_verdict("q4", "pass", {"step": number}, who="child")
    elif action == "note":
        registry.note(*[Note("note", "chat", "child", {"step": number})] * NOTES)
    else:
        registry.undeploy("chat", who="child")


def work(folder: Path, begin: int) -> None:
    """Take steps from `begin` on, for ever."""
    registry = Registry.open(folder, mode="create")
    for name in ("full", "q4", "q8"):
        registry.add_artefact(name, folder / f"{name}.gguf", who="child")
    say("ready")
    while True:
        step(registry, begin)
        say(str(begin))
        begin += 1


def main() -> None:
    """Raise children one after the other."""
    for line in sys.stdin:
        begin, _, folder = line.strip().partition(" ")
        child = os.fork()
        if not child:
            work(Path(folder), int(begin))
        say(f"child {child}")
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()

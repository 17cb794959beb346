"""The file that keeps how far rollouts are: written whole, and on the disk before anything is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tersor.core.errors import FormatError, MissingError
from tersor.core.records import from_json_text, plain, to_json_text
from tersor.deploy.gateway.rolling.progress import Progress, read_progress
from tersor.files.atomic import atomic_writer

__all__ = ["RolloutFile"]

SCHEMA = "tersor.rollouts/2"


class RolloutFile:
    """Rollouts by model; FormatError where the file that is there is none of ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rollouts: dict[str, Progress] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            found = from_json_text(text, str(path))
            models = found.get("models") if isinstance(found, dict) and found.get("schema") == SCHEMA else None
            if not isinstance(models, dict):
                raise FormatError(f"{path}: not a file of {SCHEMA}; move it away to begin rollouts anew")
            self._rollouts = {name: read_progress(row, f"{path}: {name}") for name, row in models.items()}

    def read(self, name: str) -> Progress | None:
        """Return the rollout of a model, the last that was kept."""
        return self._rollouts.get(name)

    def keep(self, name: str, now: Progress) -> None:
        """Write down the rollout of a model; MissingError where that cannot be, and the file is as it was then."""
        made: Mapping[str, Progress] = {**self._rollouts, name: now}
        try:
            with atomic_writer(self._path) as file:
                file.write(to_json_text({"schema": SCHEMA, "models": plain(made)}).encode())
        except OSError as error:
            raise MissingError(f"{self._path}: cannot be written ({error.strerror}), so nothing was changed") from error
        self._rollouts = dict(made)

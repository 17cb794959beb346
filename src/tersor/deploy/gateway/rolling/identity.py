"""What a rollout is of: the contents of its two artefacts, so that another file in the same place inherits nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tersor.core.errors import SchemeError, TersorError
from tersor.deploy.config import ModelPlan, VariantPlan
from tersor.deploy.registry.manifest import contents_of, manifest_of, state_of

__all__ = ["Identities"]


@dataclass(eq=False)
class Identities:
    """What was hashed once is not read again while its files stay as they are."""

    _hashed: dict[tuple[object, ...], str] = field(default_factory=dict, init=False)

    def of(self, plan: ModelPlan) -> tuple[str, ...]:
        """Return what identifies primary and candidate; reads their files, which may take seconds."""
        assert plan.candidate is not None, "who asks has one"
        return tuple(f"{name}={self._of(plan.variants[name])}" for name in (plan.primary, plan.candidate))

    def _of(self, plan: VariantPlan) -> str:
        if not plan.path:
            return f"{plan.url} {plan.model}"
        path = Path(plan.path)
        try:
            key = (plan.path, *state_of(path))
            if key not in self._hashed:
                self._hashed[key] = _hash(path)
            return self._hashed[key]
        except (TersorError, OSError) as error:  # it will not load either, and says so then
            return f"not readable: {error}"


def _hash(path: Path) -> str:
    try:
        contents = contents_of(path)
    except SchemeError:  # a name that tells no kind: one file
        contents = tuple(file.sha256 for file in manifest_of(path, "torch", None))
    return "sha256:" + hashlib.sha256("\n".join(contents).encode()).hexdigest()

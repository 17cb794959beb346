"""What a user asks of the plan of a net."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.core.errors import SchemeError
from tersor.core.quantities import size
from tersor.pipeline.planning.goals import check_limits

__all__ = ["NetGoal"]


@dataclass(frozen=True, slots=True)
class NetGoal:
    """Limits of a plan; None: no limit. At least one is set.

    max_bytes        of the file
    bits_per_weight  mean over all weights of the net
    max_drop         percentage points of accuracy on labelled data; without it, of agreement with the float net.
                     The smallest net that keeps it is wanted
    max_latency_ms   of one call with one item
    """

    max_bytes: int | None = None
    bits_per_weight: float | None = None
    max_drop: float | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "--max-size": self.max_bytes,
            "--bits-per-weight": self.bits_per_weight,
            "--max-latency-ms": self.max_latency_ms,
        }
        given = {name: value for name, value in limits.items() if value is not None}
        if not given and self.max_drop is None:
            raise SchemeError(f"the plan of a net needs a goal: one of {', '.join(limits)}, --max-drop")
        check_limits(given)
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise SchemeError(f"max_drop is in percentage points, from 0 to 100, got {self.max_drop}")

    def described(self) -> str:
        """Return the limits in words."""
        parts = []
        if self.max_bytes is not None:
            parts.append(f"file of at most {size(self.max_bytes)}")
        if self.bits_per_weight is not None:
            parts.append(f"at most {self.bits_per_weight:g} bits per weight")
        if self.max_drop is not None:
            parts.append(f"at most {self.max_drop:g} points lost")
        if self.max_latency_ms is not None:
            parts.append(f"a call in {self.max_latency_ms:g} ms")
        return ", ".join(parts)
